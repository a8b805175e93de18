"""What operators do in a soak: over the API, as anybody would, and with a book of what was answered."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp
import asyncpg

from schemas.ids import DELIVERY, public_id
from tests.soak.chronicle import Chronicle
from tests.soak.endpoints import LASTING, Endpoints, Wanted, guest
from tests.soak.installation import Installation
from tests.soak.schedule import Operation

_GUESTS: Final = 2  # at the beginning
_INSIST_EVERY_S: Final = 0.5
_LATELY: Final = timedelta(seconds=10)
_AT_ONCE: Final = 10  # deliveries that one operation goes through

_DRAW: Final = """
SELECT d.id FROM deliveries AS d JOIN subscriptions AS s ON s.id = d.subscription_id
WHERE d.status = ANY($1::text[]) AND s.deleted_at IS NULL AND s.state = 'enabled' ORDER BY d.updated_at DESC LIMIT $2
"""


@dataclass(slots=True, eq=False)
class Subscribed:
    """A subscription. Before `since`, and while `away` (from, to; None while it lasts), an event may not match it."""

    id: str
    wanted: Wanted
    since: float
    away: list[tuple[float, float | None]] = field(default_factory=list)
    deleted: bool = False

    def must_have(self, *, begun_at: float, admitted_at: float) -> bool:
        """Whether an event published and admitted then has to have a delivery here."""
        if begun_at < self.since:
            return False
        return not any(start <= admitted_at and (end is None or admitted_at <= end) for start, end in self.away)


@dataclass(slots=True)
class Asked:
    """How often deliveries were to be replayed: by answer, and without an answer (so it may have happened)."""

    surely: int = 0
    perhaps: int = 0


@dataclass(slots=True, eq=False)
class Operators:
    """`subscribed` is the book of subscriptions, `replayed` of single deliveries that were replayed."""

    installation: Installation
    endpoints: Endpoints
    chronicle: Chronicle
    subscribed: list[Subscribed] = field(default_factory=list)
    replayed: Asked = field(default_factory=Asked)
    _guests: int = 0

    async def begin(self) -> None:
        for wanted in LASTING:
            await self._subscribe(wanted)
        for _ in range(_GUESTS):
            await self._invite()

    async def act(self, operation: Operation) -> None:
        match operation:
            case Operation.REPLAY_ONE:
                await self._replay(await self._draw("dead", limit=1))
            case Operation.REPLAY_DELIVERED:
                await self._replay(await self._draw("delivered", limit=_AT_ONCE))
            case Operation.REPLAY_DEAD:
                since = (datetime.now(UTC) - _LATELY).isoformat()
                await self._ask("POST", "/v1/replays", {"status": ["dead"], "created_after": since})
            case Operation.CANCEL:
                await self._each("cancel", await self._draw("held", "retrying", "pending", limit=_AT_ONCE))
            case Operation.RETRY:
                await self._each("retry", await self._draw("retrying", limit=_AT_ONCE))
            case Operation.PAUSE:
                await self._change(self._one("/slow"), "paused", for_s=2)
            case Operation.DISABLE:
                await self._change(self._one("/paced"), "disabled", for_s=1)
            case Operation.CREATE:
                await self._invite()
            case Operation.DELETE:
                if (one := self._some_guest()) is not None:
                    await self._delete(one)

    async def gone(self, for_s: float) -> None:
        """A guest's endpoint answers 410 for ever; its subscription is disabled at the first, if anything comes."""
        one = self._some_guest()
        if one is not None:
            one.away.append((time.time(), None))
            one.deleted = True
            self.endpoints.be_gone(one.wanted.path)
            await asyncio.sleep(for_s)

    async def end(self) -> None:
        """Nothing is paused any more."""
        for one in self.subscribed:
            if not one.deleted:
                await self._insist("PATCH", f"/v1/subscriptions/{one.id}", {"state": "enabled"})

    def _one(self, path: str) -> Subscribed:
        return next(one for one in self.subscribed if one.wanted.path == path)

    def _some_guest(self) -> Subscribed | None:
        there = [one for one in self.subscribed if one.wanted.path.startswith("/guest") and not one.deleted]
        return there[0] if there else None

    async def _invite(self) -> None:
        self._guests += 1
        await self._subscribe(guest(self._guests))

    async def _subscribe(self, wanted: Wanted) -> None:
        """Without an answer there may be one that nobody knows; its deliveries are seen in the rows."""
        status, answer = await self._ask("POST", "/v1/subscriptions", wanted.request(self.endpoints.url(wanted)))
        if status == 201:
            self.subscribed.append(Subscribed(answer["id"], wanted, time.time()))

    async def _delete(self, one: Subscribed) -> None:
        one.deleted = True
        one.away.append((time.time(), None))
        await self._insist("DELETE", f"/v1/subscriptions/{one.id}", None)

    async def _change(self, one: Subscribed, state: str, *, for_s: float) -> None:
        """What is paused waits and is delivered later; what is disabled takes nothing."""
        path, begun_at = f"/v1/subscriptions/{one.id}", time.time()
        if state == "disabled":
            one.away.append((begun_at, None))
        await self._insist("PATCH", path, {"state": state})
        await asyncio.sleep(for_s)
        await self._insist("PATCH", path, {"state": "enabled"})
        one.away = [(start, time.time() if start == begun_at else end) for start, end in one.away]

    async def _replay(self, deliveries: Sequence[str]) -> None:
        for one in deliveries:
            status, _ = await self._ask("POST", f"/v1/deliveries/{one}/replay", None)
            self.replayed.surely += status == 202
            self.replayed.perhaps += status not in {202, 404, 409}

    async def _each(self, verb: str, deliveries: Sequence[str]) -> None:
        for one in deliveries:
            await self._ask("POST", f"/v1/deliveries/{one}/{verb}", None)

    async def _draw(self, *statuses: str, limit: int) -> list[str]:
        try:
            rows = await self.installation.direct.fetch(_DRAW, list(statuses), limit)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return []  # the database is away
        return [public_id(DELIVERY, row["id"]) for row in rows]

    async def _insist(self, method: str, path: str, body: object) -> None:
        """Ask until it is done."""
        while True:
            status, _ = await self._ask(method, path, body)
            if status < 300 or status == 404:
                return
            await asyncio.sleep(_INSIST_EVERY_S)

    async def _ask(self, method: str, path: str, body: object) -> tuple[int, Any]:
        """The answer; 599 stands for none. An internal error is nothing that any fault here may cause."""
        try:
            status, answer = await self.installation.api.ask(method, path, body)
        except (aiohttp.ClientError, TimeoutError):
            return 599, None
        if status == 500:
            self.chronicle.found(f"{method} {path} was answered with an internal error: {answer}")
        return status, answer
