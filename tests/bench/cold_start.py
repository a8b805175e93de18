"""How long a developer waits for the first webhook: from the start of `hookhare dev` to the POST at a receiver.

The folder is one that it ran in before, and was stopped in order: the database is made, and has the subscription. The
event goes to the API, which is asked again and again from the start on, until it takes it.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import aiohttp

from tests.bench import figures
from tests.support.rabbit_server import free_port
from tests.support.receivers import Receiver
from tests.support.system import Api
from tests.support.waiting import eventually

ROUNDS = 5
_COMMAND = Path(sys.executable).with_name("hookhare")
_EVENT = {"type": "order.created", "data": {"order": 4711}}
_PERIOD_S = 0.01
_DEADLINE_S = 60


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds since the process was started, until the API took an event, and until that was delivered."""

    accepted_s: float
    delivered_s: float


async def measure() -> figures.Figures:
    with tempfile.TemporaryDirectory(prefix="hookhare-bench-") as folder:
        home = Path(folder)
        async with Receiver() as receiver:
            async with _dev(home) as base, aiohttp.ClientSession() as session:
                await _answered(session, "GET", f"{base}/healthz", expect=200)
                session.headers["Authorization"] = f"Bearer {_key(home)}"
                await Api(session, base).subscribe(receiver.url("/hook"), "order.created")
            starts = [await _start(home, receiver) for _ in range(ROUNDS)]
    return {
        "cold_start_s": [one.delivered_s for one in starts],
        "cold_start.accepted_s": [one.accepted_s for one in starts],
    }


async def _start(home: Path, receiver: Receiver) -> Start:
    receiver.requests.clear()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {_key(home)}"}) as session:
        began_s = monotonic()
        async with _dev(home) as base:
            await _answered(session, "POST", f"{base}/v1/events", expect=202)
            accepted_s = monotonic() - began_s
            (request,) = await receiver.wait_for(1, deadline_s=_DEADLINE_S)
            return Start(accepted_s, request.at_s - began_s)


async def _answered(session: aiohttp.ClientSession, method: str, url: str, *, expect: int) -> None:
    """Ask until it answers as expected."""
    async with asyncio.timeout(_DEADLINE_S):
        while True:
            with suppress(aiohttp.ClientConnectionError):
                async with session.request(method, url, json=_EVENT) as response:
                    if response.status == expect:
                        return
            await asyncio.sleep(_PERIOD_S)


@asynccontextmanager
async def _dev(home: Path) -> AsyncIterator[str]:
    """It runs from here on, though it may not be up yet, and is stopped in order; yields where its API will be."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOOKHARE_")}
    environment = {**kept, "HOOKHARE_HOME": str(home), "HOOKHARE_API_PORT": str(port)}
    output = home / "output"
    with output.open("wb") as file:
        process = subprocess.Popen([_COMMAND, "dev"], env=environment, stdout=file, stderr=file)  # noqa: ASYNC220

    async def up() -> bool:
        return "Hookhare is up" in output.read_text()

    async def said() -> str:
        return output.read_text()

    try:
        yield f"http://127.0.0.1:{port}"
        await eventually(up, said, deadline_s=_DEADLINE_S)  # until then, the signal is not to stop it but to give up
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, _DEADLINE_S) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()


def _key(home: Path) -> str:
    return (home / "admin.key").read_text().strip()


if __name__ == "__main__":
    figures.run(measure)
