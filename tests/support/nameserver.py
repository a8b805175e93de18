"""A name server on loopback for a test: the names that it is told, NXDOMAIN for the others, silence and changes of mind
where wanted."""

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Final, cast

SILENCE: Final = ("silence",)  # as a name's addresses: never answer

_TYPES: Final = {4: 1, 6: 28}  # A, AAAA
_NXDOMAIN: Final = 3


class Changing:
    """A name whose IPv4 addresses are the next ones at each question, in turn, again and again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = answers
        self.asked = 0

    def next(self, kind: int) -> Sequence[str]:
        if kind != _TYPES[4]:
            return ()
        self.asked += 1
        return self._answers[(self.asked - 1) % len(self._answers)]


Names = Mapping[str, Sequence[str] | Changing]


class _NameServer(asyncio.DatagramProtocol):
    def __init__(self, names: Names, delay_s: float) -> None:
        self._names = names
        self._delay_s = delay_s
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # uvloop's is none by its class

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, position = [], 12
        while length := data[position]:
            labels.append(data[position + 1 : position + 1 + length].decode("ascii"))
            position += 1 + length
        question = data[12 : position + 5]
        (kind,) = struct.unpack(">H", data[position + 1 : position + 3])
        addresses = self._names.get(".".join(labels).lower())
        if isinstance(addresses, Changing):
            addresses = addresses.next(kind)
        if addresses is SILENCE:
            return
        packed = [ip_address(one).packed for one in addresses or () if _TYPES[ip_address(one).version] == kind]
        flags = 0x8180 | (_NXDOMAIN if addresses is None else 0)
        head = data[:2] + struct.pack(">HHHHH", flags, 1, len(packed), 0, 0)
        answers = b"".join(struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(one)) + one for one in packed)
        assert self._transport is not None
        asyncio.get_running_loop().call_later(self._delay_s, self._transport.sendto, head + question + answers, addr)


@asynccontextmanager
async def name_server(names: Names, *, delay_s: float = 0) -> AsyncIterator[str]:
    """Serve `names`, each answer after `delay_s`; yields `host:port` as `open_egress` takes it.

    What is added to `names` later is served too.
    """
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _NameServer(names, delay_s), local_addr=("127.0.0.1", 0))
    host, port = transport.get_extra_info("sockname")[:2]
    try:
        yield f"{host}:{port}"
    finally:
        transport.close()
