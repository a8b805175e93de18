"""RabbitMQ for tests: one server for the whole run, its queues empty at the start of each test.

The server is the one that HOOKHARE_TEST_AMQP_URL names, or one of `rabbit_server.py`. Without any, the tests fail and
say what to do.

Isolation goes over AMQP, so that a server of which only the URL is known serves as well. Emptying the queues takes a
tenth of a second; making the topology anew for each test, or a vhost with one, would take a whole one.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Final

import aiormq
import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity

from infra.broker.base import Queue
from infra.broker.rabbitmq import RabbitBroker
from infra.broker.topology import TopologyOptions, declare, topology
from schemas.errors import ConfigurationError
from tests.support.rabbit_server import RabbitServer, running_server

URL_VARIABLE: Final = "HOOKHARE_TEST_AMQP_URL"

_ANSWER_S: Final = 10
_WHOLE: Final = topology(TopologyOptions())
_CORE: Final = replace(  # without the ladder, which is only looked at
    _WHOLE,
    queues=tuple(queue for queue in _WHOLE.queues if queue.name in set(Queue)),
    bindings=tuple(binding for binding in _WHOLE.bindings if binding.queue in set(Queue)),
)


@pytest.fixture(scope="session")
def own_rabbit_server() -> Iterator[RabbitServer]:
    """The server of ours that the whole run shares; started when it is first asked for."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def amqp_url(request: pytest.FixtureRequest) -> str:
    """The URL of the RabbitMQ that the whole run shares."""
    given = os.environ.get(URL_VARIABLE)
    if given:
        return given
    server: RabbitServer = request.getfixturevalue("own_rabbit_server")
    return server.url


@pytest.fixture
async def rabbit_url(amqp_url: str) -> str:
    """A RabbitMQ with our topology as it is by default, its queues empty."""
    await reset(amqp_url)
    return amqp_url


@pytest.fixture
async def bare_rabbit_url(amqp_url: str) -> AsyncIterator[str]:
    """A RabbitMQ without our topology: for tests that declare it with other options than the default ones."""
    await delete_topology(amqp_url)
    yield amqp_url
    await delete_topology(amqp_url)


@pytest.fixture
async def rabbit_server(own_rabbit_server: RabbitServer) -> AsyncIterator[RabbitServer]:
    """A server of ours that the test may stop, kill and start; with the topology as by default, its queues empty."""
    await reset(own_rabbit_server.url)
    await asyncio.to_thread(settle, own_rabbit_server)
    yield own_rabbit_server
    if not own_rabbit_server.running:
        own_rabbit_server.start()


async def reset(url: str) -> None:
    """Make the default topology, empty. Raises when somebody still consumes: it would take the next test's messages."""
    connection = await aiormq.connect(url)
    try:
        try:
            await declare(await connection.channel(), _CORE, timeout_s=_ANSWER_S)
            await _empty(await connection.channel())
        except (ConfigurationError, ChannelNotFoundEntity):  # left by a test with other options, or by nobody
            await delete_topology(url)
            await declare(await connection.channel(), _WHOLE, timeout_s=_ANSWER_S)
    finally:
        await connection.close()


async def _empty(channel: AbstractChannel) -> None:
    deadline = time.monotonic() + _ANSWER_S
    for queue in _WHOLE.queues:
        while (found := await channel.queue_declare(queue.name, passive=True, timeout=_ANSWER_S)).consumer_count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"a test before this one left a consumer on {queue.name}")
            await asyncio.sleep(0.02)
        if found.message_count:
            await channel.queue_purge(queue.name, timeout=_ANSWER_S)


def settle(server: RabbitServer) -> None:
    """Make what was just declared survive a kill.

    RabbitMQ 3.10 writes the names of its quorum queues to disk half a second late. One that is killed before that comes
    back with a queue that takes no message ever again.
    """
    server.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")


async def delete_topology(url: str) -> None:
    """Delete every queue and exchange of ours.

    Not all at once. RabbitMQ's worker that dead-letters for a queue crashes when the queue is deleted while it starts,
    and with a hundred crashes in a second their supervisor gives up: nothing on that node is dead-lettered any more, so
    no retry leaves the ladder until it is restarted (seen on 3.10.8, in its log).
    """
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        for queue in _WHOLE.queues:
            await channel.queue_delete(queue.name, timeout=_ANSWER_S)
            await asyncio.sleep(0.02)
        for exchange in _WHOLE.exchanges:
            await channel.exchange_delete(exchange.name, timeout=_ANSWER_S)
    finally:
        await connection.close()


def rabbit(url: str, options: TopologyOptions | None = TopologyOptions()) -> RabbitBroker:  # noqa: B008  frozen
    """The adapter, to be opened; without options it declares nothing."""
    return RabbitBroker(url, topology=options, timeout_s=5)
