"""A proxy that stands between a client and a server, and does to their connections what networks do."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

Address = tuple[str, int] | str  # host and port, or the path of a Unix socket
Flows = Mapping["Direction", asyncio.Event]  # of one connection: set while bytes pass in a direction

_CHUNK_BYTES: Final = 65_536


class Direction(StrEnum):
    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class Proxy:
    """Listens on a free port of loopback, or on the Unix socket `listen`, and forwards to `target`, both ways.

    With `tls` it takes TLS connections, and forwards in the clear. Open between `async with … as proxy`; leaving cuts
    what is still connected.
    """

    def __init__(self, target: Address, *, listen: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._listen = listen
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows: set[tuple[Direction, asyncio.Event]] = set()
        self._stalled: set[Direction] = set()
        self._refusing = False
        self._allowance: dict[Direction, int] = {}
        self.connections = 0  # accepted since the beginning
        self.cuts = 0
        self.passed_bytes = dict.fromkeys(Direction, 0)

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Cut every connection at once, on both sides, without a word."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def cut_after(self, size_bytes: int, direction: Direction) -> None:
        """Let so many more bytes pass in a direction, on all connections together; then cut."""
        self._allowance[direction] = size_bytes

    def stall(self, *directions: Direction) -> None:
        """Let nothing pass, in these directions or in both, while the connections stay up; new ones come up mute."""
        self._stalled.update(directions or Direction)
        self._clear(self._stalled)

    def freeze(self) -> None:
        """Let nothing pass on the connections that there are, as a firewall that forgot them; new ones are well."""
        self._clear(set(Direction))

    def resume(self) -> None:
        """Let everything pass again, late, also what was sent over connections that their client gave up."""
        self._stalled.clear()
        for _, flowing in self._flows:
            flowing.set()

    def _clear(self, directions: set[Direction]) -> None:
        for direction, flowing in self._flows:
            if direction in directions:
                flowing.clear()

    def refuse(self) -> None:
        """Drop new connections as soon as they come; those that are up stay."""
        self._refusing = True

    def accept(self) -> None:
        self._refusing = False

    async def __aenter__(self) -> Self:
        if self._listen is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self._tls)
        else:
            self._server = await asyncio.start_unix_server(self._accepted, self._listen)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.resume()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            await self._forward(reader, writer)
        except OSError:
            pass  # the server is away, and so are we
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(self._target, str):
            there_reader, there_writer = await asyncio.open_unix_connection(self._target)
        else:
            there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers.add(there_writer)
        flows = {direction: asyncio.Event() for direction in Direction}
        self._flows.update(flows.items())
        for direction, flowing in flows.items():
            if direction not in self._stalled:
                flowing.set()
        pumps = {
            asyncio.create_task(self._pump(reader, there_writer, Direction.TO_SERVER, flows)),
            asyncio.create_task(self._pump(there_reader, writer, Direction.TO_CLIENT, flows)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            self._flows.difference_update(flows.items())
            self._writers.discard(there_writer)
            there_writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction, flows: Flows
    ) -> None:
        """Forward until either side is gone."""
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await flows[direction].wait()
                self.passed_bytes[direction] += len(data)
                allowed = self._allowance.get(direction)
                if allowed is None:
                    writer.write(data)
                    await writer.drain()
                    continue
                self._allowance[direction] = allowed - len(data)
                writer.write(data[:allowed])
                if len(data) >= allowed:
                    await writer.drain()
                    del self._allowance[direction]
                    self.cut()
                    return
            # The end of one direction ends both: none of the protocols here uses half a connection.
            if not writer.is_closing():
                writer.close()
                await writer.wait_closed()
