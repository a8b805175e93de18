"""The contract's parameter: every test runs over RabbitMQ and over PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.broker.base import Broker
from tests.contract.harness import Breakable, Harness, PostgresHarness, RabbitHarness
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy

DELIVERY_LIMIT = 100
SHORT_LIMIT = 4


@pytest.fixture(params=["rabbitmq", "postgresql"])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """A broker of each kind, with the usual delivery limit."""
    if request.param == "rabbitmq":
        yield RabbitHarness(request.getfixturevalue("rabbit_url"), DELIVERY_LIMIT)
    else:
        yield PostgresHarness(_tcp(request), DELIVERY_LIMIT)


@pytest.fixture(params=["rabbitmq", "postgresql"])
def strict(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """A broker of each kind that dead-letters what came back more than `SHORT_LIMIT` times."""
    if request.param == "rabbitmq":
        yield RabbitHarness(request.getfixturevalue("bare_rabbit_url"), SHORT_LIMIT)
    else:
        yield PostgresHarness(_tcp(request), SHORT_LIMIT)


@pytest.fixture(params=["rabbitmq", "postgresql"])
def breakable(request: pytest.FixtureRequest) -> Breakable:
    """A broker of each kind whose server the test may kill and start."""
    if request.param == "rabbitmq":
        server = request.getfixturevalue("rabbit_server")
        return Breakable(RabbitHarness(server.url, DELIVERY_LIMIT), server)
    own: Postgres = request.getfixturevalue("own_postgres")
    with ThreadPoolExecutor(1) as thread:  # beside the test's loop
        name = thread.submit(lambda: asyncio.run(own.create_database())).result()
    return Breakable(PostgresHarness(own.tcp_dsn(name), DELIVERY_LIMIT), own)


@pytest.fixture
async def broker(harness: Harness) -> AsyncIterator[Broker]:
    """An open broker."""
    async with harness.broker() as opened:
        yield opened


@pytest.fixture
async def proxy(harness: Harness) -> AsyncIterator[Proxy]:
    """A proxy before the harness's server."""
    async with Proxy(harness.target) as opened:
        yield opened


def _tcp(request: pytest.FixtureRequest) -> str:
    """The test's database, over TCP so that a proxy can stand before it."""
    server: Postgres = request.getfixturevalue("postgres")
    database: str = request.getfixturevalue("database_url")
    return server.tcp_dsn(database.rsplit("/", 1)[-1].partition("?")[0])
