"""The demo's dispatcher takes every event of the RabbitMQ it is pointed at: it must not be somebody's.

An event of another installation would be admitted into the demo's database, match nothing there, and be gone.
"""

import asyncio

import aiormq
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity

from infra.broker.base import Queue
from schemas.errors import BrokerUnavailable, ConfigurationError

_TIMEOUT_S = 10


async def require_unused(url: str) -> None:
    """Raise ConfigurationError if the RabbitMQ at `url` carries events, or somebody consumes them there."""
    if not url.startswith(("amqp://", "amqps://")):
        raise ConfigurationError("--broker must be an amqp:// or amqps:// URL")  # not shown: it may hold a password
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            connection = await aiormq.connect(url)
    except (AMQPError, OSError, ValueError) as error:
        raise BrokerUnavailable(f"RabbitMQ cannot be reached at the URL given: {type(error).__name__}") from error
    try:
        for queue in (Queue.EVENTS, Queue.WORK):
            channel = await connection.channel()
            try:
                found = await channel.queue_declare(queue.value, passive=True, timeout=_TIMEOUT_S)
            except ChannelNotFoundEntity:
                continue  # nothing of ours was ever there
            if found.message_count or found.consumer_count:
                raise ConfigurationError(
                    f"this RabbitMQ is in use: {queue.value} has {found.consumer_count} consumers and "
                    f"{found.message_count} messages, which the demo would take. Use another virtual host, "
                    "or --force if what is there may be lost"
                )
    finally:
        await connection.close()
