"""An HTTP proxy on loopback that makes tunnels (CONNECT), and records what it was asked and what went through."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

_CHUNK_BYTES = 65_536


@dataclass(slots=True)
class ConnectProxy:
    """`heads` are what clients asked; `passed` what they sent through the tunnels, as it went over the wire.

    `answer` is given instead of a tunnel; an empty one is silence. `leads` are the ports of loopback that endpoints
    (host and port) lead to; others are reached at the port that was asked for.
    """

    port: int = 0
    answer: bytes | None = None
    leads: Mapping[str, int] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    passed: bytearray = field(default_factory=bytearray)

    def url(self, credentials: str = "") -> str:
        return f"http://{credentials}{'@' if credentials else ''}127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[str]:
        """The request lines."""
        return [head.partition("\r\n")[0] for head in self.heads]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        self.heads.append(head)
        if self.answer is not None:
            writer.write(self.answer)
            await writer.drain()
            await reader.read()  # until the client ends it
            return
        authority = head.split(" ")[1]
        port = self.leads.get(authority, int(authority.rpartition(":")[2]))
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        pumps = {
            asyncio.create_task(self._pump(reader, there_writer, self.passed)),
            asyncio.create_task(self._pump(there_reader, writer, None)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            there_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray | None) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if record is not None:
                record += data
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def connect_proxy(
    answer: bytes | None = None, leads: Mapping[str, int] | None = None
) -> AsyncIterator[ConnectProxy]:
    """A proxy on a free port of loopback; leaving cuts its tunnels."""
    proxy = ConnectProxy(answer=answer, leads=leads or {})
    running: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await proxy.serve(reader, writer)
        finally:
            running.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        tasks = list(running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
