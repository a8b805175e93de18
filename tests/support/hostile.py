"""Endpoints that mean harm: raw sockets on loopback that follow a script instead of HTTP.

A script gets the streams of one connection. Most read the request and then misbehave; `Hostile.sent_bytes` tells how
much they got rid of, which is how a test sees that nobody kept reading.
"""

import asyncio
import gzip
import socket
import ssl
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from time import monotonic

import psutil

Script = Callable[["Hostile", StreamReader, StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
OK = HEAD + b"Content-Length: 2\r\n\r\nok"


@dataclass(slots=True)
class Hostile:
    """What the server at `port` has seen and done so far."""

    port: int = 0
    scheme: str = "http"
    connections: int = 0
    requests: int = 0
    closed: int = 0  # connections that the other side ended
    sent_bytes: int = 0

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def request(self, reader: StreamReader) -> bytes:
        """Read one whole request; its head."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        await reader.readexactly(length)
        self.requests += 1
        return head

    async def send(self, writer: StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()
        self.sent_bytes += len(data)

    async def pour(self, writer: StreamWriter, data: bytes) -> None:
        """Send `data` again and again until nobody takes it."""
        while True:
            await self.send(writer, data)
            await asyncio.sleep(0)


@asynccontextmanager
async def hostile(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Hostile]:
    """A server on 127.0.0.1 that runs `script` for each connection."""
    state = Hostile(scheme="http" if tls is None else "https")
    running: set[asyncio.Task[None]] = set()

    async def run(reader: StreamReader, writer: StreamWriter) -> None:
        state.connections += 1
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                await script(state, reader, writer)
            state.closed += 1
        except asyncio.CancelledError:
            pass  # the test is over; asyncio's streams would log it
        finally:
            running.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(run, "127.0.0.1", 0, ssl=tls)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        tasks = list(running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_closed(reader: StreamReader) -> None:
    """Wait for the other side to end the connection."""
    while await reader.read(65_536):
        pass


async def connections_end(port: int, count: int = 0, *, within_s: float = 2) -> None:
    """Wait until we hold at most `count` connections to `port`."""
    deadline = monotonic() + within_s
    while len(ours := _connections_to(port)) > count:
        assert monotonic() < deadline, ours
        await asyncio.sleep(0.02)


def _connections_to(port: int) -> list[str]:
    return [one.status for one in psutil.Process().net_connections("tcp") if tuple(one.raddr)[1:] == (port,)]


async def accepts_and_hangs(_: Hostile, reader: StreamReader, __: StreamWriter) -> None:
    await until_closed(reader)


async def drips_its_body(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    """A whole head at once, then a byte now and then: a timeout for the head alone never fires."""
    await it.request(reader)
    await it.send(writer, HEAD + b"Content-Length: 1000000\r\n\r\n")
    while True:
        await it.send(writer, b"x")
        await asyncio.sleep(0.05)


async def drips_its_head(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD)
    while True:
        await it.send(writer, b"x")
        await asyncio.sleep(0.05)


async def sends_a_body_without_end(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD + b"\r\n")  # no length: until the connection ends
    await it.pour(writer, b"y" * 65_536)


async def sends_chunks_without_end(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    await it.pour(writer, b"1\r\nz\r\n" * 1000)


async def sends_a_chunk_extension_without_end(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;")
    await asyncio.sleep(0.05)  # let the head be taken
    await it.pour(writer, b"e" * 65_536)


async def announces_ten_gigabytes(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD + b"Content-Length: 10737418240\r\n\r\n")
    await it.pour(writer, b"G" * 65_536)


async def sends_headers_without_end(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD)
    await it.pour(writer, b"X-Filler: f\r\n" * 1000)


async def sends_one_header_without_end(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD + b"X-Filler: ")
    await it.pour(writer, b"f" * 65_536)


async def sends_a_status_line_without_end(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, b"HTTP/1.1 200 ")
    await it.pour(writer, b"O" * 65_536)


async def sends_interim_answers_without_end(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.pour(writer, b"HTTP/1.1 100\r\n\r\n" * 4096)


async def sends_trailers_without_end(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n")
    await it.pour(writer, b"X-Trailer: t\r\n" * 1000)


async def resets_within_its_body(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD + b"Content-Length: 1000\r\n\r\nsome of it")
    await asyncio.sleep(0.05)  # let the head be taken
    reset(writer)


async def ends_within_its_body(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD + b"Content-Length: 1000\r\n\r\nsome of it")


async def resets_instead_of_answering(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    reset(writer)


async def closes_instead_of_answering(it: Hostile, reader: StreamReader, _: StreamWriter) -> None:
    await it.request(reader)


async def speaks_no_http(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, b"SSH-2.0-OpenSSH_9.2\x00\x1b[31m\xff\r\n")
    await until_closed(reader)


async def breaks_its_chunks(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
    await asyncio.sleep(0.05)  # let the head be taken
    await it.send(writer, b"this is no chunk\r\n")
    await until_closed(reader)


async def sends_a_compressed_bomb(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    body = bomb()
    await it.send(writer, HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await until_closed(reader)


@cache
def bomb() -> bytes:
    """100 MB of zeros in less than half a megabyte. Making it takes a while: before a deadline runs, call it once."""
    return gzip.compress(b"\x00" * 100_000_000, compresslevel=1)


async def redirects_to_itself(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    while True:
        await it.request(reader)
        await it.send(writer, b"HTTP/1.1 307 Again\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")


async def switches_protocols(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(
        writer, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x02hi"
    )
    await until_closed(reader)


async def never_reads(it: Hostile, _: StreamReader, writer: StreamWriter) -> None:
    """Leaves the request in the kernel, whose buffers are small here, and never answers."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()


async def answers_without_reading(it: Hostile, _: StreamReader, writer: StreamWriter) -> None:
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await it.send(writer, OK)
    await asyncio.Event().wait()


async def floods_once_idle(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    """A good answer, and then a stream of others that nobody asked for, on the kept-alive connection."""
    await it.request(reader)
    await it.send(writer, OK)
    await asyncio.sleep(0.05)  # let the connection become idle
    await it.pour(writer, OK * 1000)


async def answers_ahead(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    """A good answer, and a second one a little later: the answer to a request that was not made yet."""
    await it.request(reader)
    await it.send(writer, OK)
    await asyncio.sleep(0.05)
    await it.send(writer, HEAD + b"Content-Length: 5\r\n\r\nstale")
    while True:
        await it.request(reader)
        await it.send(writer, OK)


async def answers_twice_in_one_piece(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    """The end of one answer's body, and another answer with it."""
    await it.request(reader)
    await it.send(writer, HEAD + b"Content-Length: 2\r\n\r\no")
    await asyncio.sleep(0.05)  # so that it is a piece of its own
    await it.send(writer, b"k" + HEAD + b"Content-Length: 6\r\n\r\nforged")
    await until_closed(reader)


def reset(writer: StreamWriter) -> None:
    """End the connection by RST."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
