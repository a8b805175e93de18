"""A whole installation for a test: store, broker, API, dispatchers, over either broker.

Dispatchers run in the test's own process (`dispatcher`) or as processes that can be killed (`DispatcherProcess`).
"""

import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

import aiohttp
import asyncpg
import orjson
import pytest

from consumer_api.bootstrap import open_api
from dispatcher.bootstrap import Dispatcher, open_dispatcher
from infra.broker.base import Broker
from infra.broker.open import open_broker
from infra.crypto import new_key
from infra.settings import Settings, read_settings
from infra.store import api_keys
from infra.store.store import open_store
from producer.publisher import EventPublisher
from tests.support.forked import COME_TO, fork
from tests.support.points import Point
from tests.support.waiting import eventually

# Receivers of tests are plain, and listen where there is room.
ANY_URL: Mapping[str, object] = {"egress_http": True, "egress_ports": "1-65535"}

# Shorter than in production, in the same proportions; long enough for a busy machine of two cores.
QUICK: Mapping[str, object] = {
    "heartbeat_s": 0.5,
    "renewal_timeout_s": 2,
    "begin_margin_s": 0.5,
    "liveness_s": 4,
    "max_wait_in_hand_s": 5,
    "settle_allowance_s": 10,
    "claim_cap_s": 76,
    "feeder_period_s": 0.1,
    "reconcile_period_s": 0.5,
    "reconcile_grace_s": 2,
    "breaker_min_attempts": 1_000_000,  # a test of breakers says when they open
    "breaker_timeouts": 1_000_000,
    "drain_s": 5,
    "database_timeout_s": 5,
    "broker_timeout_s": 5,
    "broker_lease_s": 3,
    "dispatcher_port": 0,
    "api_port": 0,
    "log_level": "warning",
    "egress_allow": "127.0.0.0/8",
    **ANY_URL,
}


class Api:
    """The admin API, as a client sees it."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self.base = base

    async def call(self, method: str, path: str, body: object = None, *, expect: int | None = None) -> Any:
        """One call; its JSON answer. `expect` is the status that it must have (2xx unless said)."""
        status, answer = await self.ask(method, path, body)
        assert status == expect if expect else status < 300, (status, answer)
        return answer

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One call; its status and its JSON answer."""
        data = None if body is None else orjson.dumps(body)
        async with self._session.request(
            method, self.base + path, data=data, headers={"Content-Type": "application/json"}
        ) as response:
            text = await response.read()
            return response.status, orjson.loads(text) if text else None

    async def subscribe(self, url: str, *event_types: str, **more: object) -> dict[str, Any]:
        """Create a subscription; the answer has its secret."""
        body = {"url": url, "event_types": list(event_types) or ["#"], **more}
        answer: dict[str, Any] = await self.call("POST", "/v1/subscriptions", body, expect=201)
        return answer

    async def all(self, path: str) -> list[dict[str, Any]]:
        """Every item of a list, page after page."""
        items: list[dict[str, Any]] = []
        cursor = ""
        while True:
            joint = "&" if "?" in path else "?"
            page = await self.call("GET", f"{path}{joint}limit=200{cursor}")
            items += page["data"]
            if not page["has_more"]:
                return items
            cursor = f"&cursor={page['next_cursor']}"


class System:
    """One database, one broker, one encryption key; `changes` of the quick settings are for all its processes."""

    def __init__(self, database_url: str, broker_url: str, **changes: object) -> None:
        self.database_url = database_url
        self.broker_url = broker_url
        self._key = new_key()
        self._changes = changes

    def settings(self, **changes: object) -> Settings:
        """Quick settings for this installation."""
        return read_settings(**self._values(changes))

    def _values(self, changes: Mapping[str, object]) -> dict[str, Any]:
        return {
            **QUICK,
            "database_url": self.database_url,
            "broker_url": self.broker_url,
            "encryption_keys": self._key,
            **self._changes,
            **changes,
        }

    def environment(self, **changes: object) -> dict[str, str]:
        """The same settings for a process of its own."""
        ours = {f"HOOKHARE_{name.upper()}": str(value) for name, value in self._values(changes).items()}
        theirs = {name: value for name, value in os.environ.items() if not name.startswith("HOOKHARE_")}
        return {**theirs, **ours}

    @asynccontextmanager
    async def api(self, **changes: object) -> AsyncIterator[Api]:
        """A running API, and a client of it with an admin key."""
        settings = self.settings(**changes)
        async with open_store(settings) as store, store.transaction() as connection:
            key, _ = await api_keys.create(connection, "test")
        async with (
            open_api(settings) as running,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        ):
            yield Api(session, f"http://{running.host}:{running.port}")

    @asynccontextmanager
    async def dispatcher(self, **changes: object) -> AsyncIterator[Dispatcher]:
        """A dispatcher in this process; its crash fails the test."""
        async with open_dispatcher(self.settings(**changes)) as dispatcher:
            yield dispatcher
            if dispatcher.failed.done():
                await dispatcher.failed

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[EventPublisher]:
        async with EventPublisher(self.broker_url, source="tests") as publisher:
            yield publisher

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Broker]:
        async with open_broker(self.settings()) as broker:
            yield broker

    async def fetch(self, statement: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Look into the database."""
        connection = await asyncpg.connect(self.database_url)
        try:
            rows: Sequence[asyncpg.Record] = await connection.fetch(statement, *arguments)
            return rows
        finally:
            await connection.close()

    async def value(self, statement: str, *arguments: object) -> Any:
        rows = await self.fetch(statement, *arguments)
        return rows[0][0] if rows else None

    async def statuses(self) -> dict[str, int]:
        """How many deliveries there are of each status."""
        rows = await self.fetch("SELECT status, count(*) AS number FROM deliveries GROUP BY status")
        return {row["status"]: row["number"] for row in rows}

    async def settled(self, expected: Mapping[str, int], *, deadline_s: float = 30) -> None:
        """Wait until the deliveries stand as expected and nobody holds a claim."""

        async def there() -> bool:
            if await self.statuses() != expected:
                return False
            return not await self.value("SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL")

        await eventually(there, self.statuses, deadline_s=deadline_s)


class DispatcherProcess:
    """A dispatcher in a process of its own. It sends itself `fault` when it comes to one of the points `at`.

    `prepare` is called in the process before anything else, to put something hostile in a part's place.
    """

    def __init__(
        self,
        system: System,
        log: Path,
        *,
        at: Sequence[Point] = (),
        fault: signal.Signals = signal.SIGKILL,
        prepare: Callable[[], None] | None = None,
        **changes: object,
    ) -> None:
        self._environment = {**system.environment(**changes), "HOOKHARE_LOG_LEVEL": "info"}
        self._log = log
        self._points = tuple(at)
        self._fault = fault
        self._prepare = prepare
        self._process: BaseProcess | None = None
        self._written_before = 0  # to the same file, in bytes

    @property
    def log(self) -> str:
        """What it has written since it was started."""
        return self._log.read_bytes()[self._written_before :].decode()

    @property
    def stands_still(self) -> bool:
        """Whether it has come to its point. It stops itself in the same breath."""
        return COME_TO in self.log

    def under_way(self) -> list[tuple[str, str]]:
        """The POSTs that it had begun when it came to its point, by webhook-id and URL."""
        line = self.log.partition(COME_TO)[2].partition("\n")[0]
        return [(webhook_id, url) for webhook_id, url in json.loads(line)]

    @property
    def pid(self) -> int:
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.is_alive()

    async def start(self, *, may_die: bool = False) -> None:
        """Start it, and wait until it says that it has, or has come to its fault (or died, if it may) before."""
        self._log.touch()
        self._written_before = self._log.stat().st_size
        self._process = fork(self._environment, self._log, self._fault, self._points, self._prepare)

        async def started() -> bool:
            if self.running and not self.stands_still:
                return "dispatcher.started" in self.log
            assert self._points or may_die, self.log[-2000:]
            return True

        await eventually(started, self._tail, deadline_s=60)

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def stop(self) -> int:
        """SIGTERM, and wait for its end; the exit code."""
        self._signal(signal.SIGTERM)
        return await self.wait()

    async def wait(self, *, deadline_s: float = 60) -> int:
        """Wait for its end; the exit code, or the negative number of the signal that ended it."""
        process = self._process
        assert process is not None

        async def ended() -> bool:
            return not process.is_alive()

        await eventually(ended, self._tail, deadline_s=deadline_s)
        assert process.exitcode is not None
        return process.exitcode

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            os.kill(self.pid, number)

    async def _tail(self) -> str:
        return self.log[-2000:]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.resume()
        self.kill()
        await self.wait()


@pytest.fixture(params=["rabbitmq", "postgres"])
def system(request: pytest.FixtureRequest, database_url: str) -> System:
    """An installation over each of the two brokers."""
    if request.param == "postgres":
        return System(database_url, database_url)
    broker_url: str = request.getfixturevalue("rabbit_url")
    return System(database_url, broker_url)


@pytest.fixture
async def api(system: System) -> AsyncIterator[Api]:
    async with system.api() as client:
        yield client
