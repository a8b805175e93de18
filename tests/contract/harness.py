"""The brokers that the contract is run over, each with what a test may do to its server.

The tests know only `Harness`. It can be pickled, so that a test may start a process of its own with it.
"""

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from infra.broker.base import Broker
from infra.broker.postgres import PostgresBroker
from infra.broker.rabbitmq import RabbitBroker
from infra.broker.topology import TopologyOptions
from tests.support.proxy import Proxy

TIMEOUT_S: Final = 5.0
# How long a consumer may be silent before it is taken for dead, where that is how death is noticed. Much longer than a
# busy machine of two cores stalls, and short enough to wait for.
LEASE_S: Final = 3.0


class Harness(Protocol):
    """One kind of broker: a server whose queues are empty."""

    @property
    def target(self) -> tuple[str, int]:
        """Where the server listens, for a proxy to stand before it."""
        ...

    def broker(self, *, through: Proxy | None = None, timeout_s: float = TIMEOUT_S) -> Broker:
        """A broker, to be entered; its connections go through the proxy, if one is given."""
        ...


class Server(Protocol):
    """The server of a harness, for the tests that may break it."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


@dataclass(frozen=True)
class RabbitHarness:
    url: str
    delivery_limit: int

    @property
    def target(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 5672

    def broker(self, *, through: Proxy | None = None, timeout_s: float = TIMEOUT_S) -> RabbitBroker:
        url = self.url if through is None else _at(self.url, through.port)
        return RabbitBroker(url, topology=TopologyOptions(self.delivery_limit), timeout_s=timeout_s)


@dataclass(frozen=True)
class PostgresHarness:
    dsn: str
    delivery_limit: int

    @property
    def target(self) -> tuple[str, int]:
        parts = urlsplit(self.dsn)
        return parts.hostname or "127.0.0.1", parts.port or 5432

    def broker(self, *, through: Proxy | None = None, timeout_s: float = TIMEOUT_S) -> PostgresBroker:
        dsn = self.dsn if through is None else _at(self.dsn, through.port)
        return PostgresBroker(dsn, delivery_limit=self.delivery_limit, timeout_s=timeout_s, lease_s=LEASE_S)


@dataclass(frozen=True)
class Breakable:
    """A harness with its server."""

    harness: Harness
    server: Server

    async def kill(self) -> None:
        """SIGKILL."""
        await asyncio.to_thread(self.server.kill)

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)


def _at(url: str, port: int) -> str:
    parts = urlsplit(url)
    user = f"{parts.username}:{parts.password}@" if parts.password else f"{parts.username}@" if parts.username else ""
    return parts._replace(netloc=f"{user}127.0.0.1:{port}").geturl()
