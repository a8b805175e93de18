"""How a command stops, and what it says when it cannot go on."""

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hookhare import process
from schemas.errors import BrokerUnavailable, ConfigurationError, StoreUnavailable


class Server:
    """Records what happens to it. `starts` and `drains` are what it waits for while it comes up and goes down."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.starts: asyncio.Event | None = None
        self.drains: asyncio.Event | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        self.log.append("starting")
        try:
            if self.starts is not None:
                await self.starts.wait()
            self.log.append("up")
            yield "here"
            self.log.append("draining")
            if self.drains is not None:
                await self.drains.wait()
            self.log.append("drained")
        finally:
            self.log.append("closed")


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_a_server_that_is_up(number: signal.Signals) -> None:
    server = Server()

    def announce(where: str) -> None:
        server.log.append(f"at {where}")
        send(number)

    async def main() -> None:
        await process.serve(server.open(), announce=announce)

    assert process.run(main) == 0
    assert server.log == ["starting", "up", "at here", "draining", "drained", "closed"]


def test_a_second_signal_ends_the_draining(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()

    async def main() -> None:
        server.drains = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, send, signal.SIGTERM)
        await process.serve(server.open(), announce=lambda _: send(signal.SIGTERM))

    assert process.run(main) == 1
    assert server.log == ["starting", "up", "draining", "closed"]
    assert capsys.readouterr().err == "hookhare: stopped before it was done\n"


def test_a_signal_during_the_start_closes_what_was_opened(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()

    async def main() -> None:
        server.starts = asyncio.Event()
        asyncio.get_running_loop().call_soon(send, signal.SIGINT)
        await process.serve(server.open())

    assert process.run(main) == 1
    assert server.log == ["starting", "closed"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigurationError("HOOKHARE_X: is not set"), "hookhare: HOOKHARE_X: is not set\n"),
        (
            ExceptionGroup(
                "of a task group", [StoreUnavailable("gone"), ExceptionGroup("", [StoreUnavailable("gone")])]
            ),
            "hookhare: StoreUnavailable: gone; is HOOKHARE_DATABASE_URL right, and the database up?\n",
        ),
        (
            OSError(errno.EADDRINUSE, "address already in use"),
            (
                "hookhare: address already in use: "
                "set HOOKHARE_API_PORT or HOOKHARE_DISPATCHER_PORT to a free port, or 0\n"
            ),
        ),
    ],
)
def test_errors_on_purpose_are_lines(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        raise error

    assert process.run(main) == 1
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BrokerUnavailable("gone"), "hookhare: BrokerUnavailable: gone; is --broker right, and the broker up?\n"),
        (ConfigurationError("HOOKHARE_BROKER_URL: refused"), "hookhare: --broker: refused\n"),
        (ConfigurationError("HOOKHARE_HOME: is a file"), "hookhare: HOOKHARE_HOME: is a file\n"),
    ],
)
def test_a_broker_named_by_an_option_is_blamed_on_it(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        raise error

    assert process.run(main, broker_option="--broker") == 1
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback() -> None:
    async def main() -> None:
        raise ExceptionGroup("of a task group", [ConfigurationError("one"), KeyError("a bug")])

    with pytest.raises(ExceptionGroup):
        process.run(main)


def test_a_server_that_fails_while_it_is_up_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()

    async def failed(_: str) -> None:
        raise StoreUnavailable("gone")

    async def main() -> None:
        await process.serve(server.open(), failed=failed)

    assert process.run(main) == 1
    assert server.log == ["starting", "up", "closed"]
    assert (
        capsys.readouterr().err
        == "hookhare: StoreUnavailable: gone; is HOOKHARE_DATABASE_URL right, and the database up?\n"
    )
