"""The receiver of the throughput cases, in a process of its own: it answers every POST with 200, and counts.

It parses no more of HTTP than it has to, so that on two cores as little as possible is its own share. `GET /count` says
how many POSTs came.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

import aiohttp
import uvloop

from tests.support.waiting import eventually

_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_LENGTH: Final = b"content-length:"


@dataclass(frozen=True, slots=True)
class Sink:
    """One that runs."""

    url: str
    pid: int

    async def count(self) -> int:
        """How many POSTs have come."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/count") as response:
            return int(await response.text())

    async def reached(self, count: int, *, deadline_s: float) -> None:
        """Wait until so many have come."""

        async def there() -> bool:
            return await self.count() >= count

        await eventually(there, self.count, deadline_s=deadline_s)


@asynccontextmanager
async def sink(*, delay_ms: float = 0) -> AsyncIterator[Sink]:
    """A receiver that answers after so long."""
    command = [sys.executable, "-m", "tests.bench.sink", str(delay_ms)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        yield Sink(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.kill()
        process.wait()


class _Connection(asyncio.Protocol):
    count = 0

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end].lower()
            length = int(head.partition(_LENGTH)[2].partition(b"\r\n")[0] or 0)
            if len(self._rest) < end + 4 + length:
                return
            self._rest = self._rest[end + 4 + length :]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        if head.startswith(b"get"):
            body = json.dumps(_Connection.count).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        _Connection.count += 1
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self._transport.write, _OK)
        else:
            self._transport.write(_OK)


async def _serve(delay_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(delay_s), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("delay_ms", type=float)
    uvloop.run(_serve(parser.parse_args().delay_ms / 1000))
