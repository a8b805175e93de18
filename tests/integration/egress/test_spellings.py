"""Forbidden addresses in thousands of spellings: none is reached, whatever the rules say before the guard."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.egress import Egress, open_egress
from infra.egress_attempt import ATTEMPT, Attempt
from infra.egress_connector import EgressConnector, FewAddresses
from infra.egress_rules import EgressRules
from infra.settings import read_settings
from schemas.deliveries import Failure, NoAnswer
from tests.support.certificates import NO_TLS
from tests.support.spellings import forbidden_urls
from tests.support.system import ANY_URL

MANY = settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Trap:
    """Listens on every address of this machine, both families where there are two, and counts who comes."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        self._servers.append(await asyncio.start_server(self._come, "0.0.0.0", 0))
        self.port = self._servers[0].sockets[0].getsockname()[1]
        with suppress(OSError):  # a machine without IPv6
            self._servers.append(await asyncio.start_server(self._come, "::", self.port))

    def stop(self) -> None:
        for server in self._servers:
            server.close()

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.transport.abort()


@pytest.fixture
async def trap() -> AsyncIterator[Trap]:
    trap = Trap()
    await trap.start()
    yield trap
    trap.stop()


@pytest.fixture
async def egress() -> AsyncIterator[Egress]:
    async with open_egress(read_settings(egress_allow="", **ANY_URL), tls=NO_TLS) as egress:
        yield egress


@MANY
@given(data=st.data())
async def test_no_spelling_of_a_forbidden_address_is_reached(data: st.DataObject, egress: Egress, trap: Trap) -> None:
    url = data.draw(forbidden_urls(port=trap.port))
    result = await egress.post(url, headers={"webhook-id": "evt_1"}, body=b"{}", timeout_s=5)
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.FORBIDDEN_ADDRESS, result
    assert result.reason.startswith("the URL must ")
    assert trap.connections == 0


@pytest.fixture
async def unruled(trap: Trap) -> AsyncIterator[aiohttp.ClientSession]:
    """A plain client of aiohttp's over the guarded connector: nobody has judged its URLs before the socket."""
    connector = EgressConnector(EgressRules(), FewAddresses(), NO_TLS)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5)) as session:
        yield session


@MANY
@given(data=st.data())
async def test_the_guard_at_the_socket_holds_without_the_rules(
    data: st.DataObject, unruled: aiohttp.ClientSession, trap: Trap
) -> None:
    url = data.draw(forbidden_urls(port=trap.port))
    context = ATTEMPT.set(Attempt())
    try:
        with pytest.raises((aiohttp.ClientError, ValueError, IndexError)):
            await unruled.post(url, allow_redirects=False)
    finally:
        ATTEMPT.reset(context)
    assert trap.connections == 0


async def test_the_trap_catches(trap: Trap) -> None:
    """Whom nothing holds back falls into it: the tests above could fail."""
    async with open_egress(read_settings(egress_allow="0.0.0.0/0,::/0", **ANY_URL), tls=NO_TLS) as egress:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"):
            before = trap.connections
            result = await egress.post(f"http://{host}:{trap.port}/", headers={}, body=b"{}", timeout_s=5)
            assert isinstance(result, NoAnswer)
            assert result.failure is not Failure.FORBIDDEN_ADDRESS
            assert trap.connections == before + 1
