"""The endpoints of a soak, what each of them wants, and every request that they saw."""

import asyncio
import random
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.support import hostile
from tests.support.hostile import Hostile, Script
from tests.support.receivers import Behaviour, Receiver

EVENT_TYPES: Final[Mapping[str, float]] = {  # and how often
    "order.created": 0.5,
    "order.paid": 0.25,
    "order.refunded": 0.1,
    "user.updated": 0.1,
    "user.deleted": 0.05,
}

# Not those that answer what they were not asked: what they claim to have taken cannot be accounted for.
_SCRIPTS: Final[Sequence[Script]] = (
    hostile.accepts_and_hangs,
    hostile.drips_its_body,
    hostile.sends_a_body_without_end,
    hostile.sends_chunks_without_end,
    hostile.announces_ten_gigabytes,
    hostile.sends_headers_without_end,
    hostile.resets_within_its_body,
    hostile.resets_instead_of_answering,
    hostile.closes_instead_of_answering,
    hostile.speaks_no_http,
    hostile.breaks_its_chunks,
    hostile.redirects_to_itself,
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A subscription to be made. `path` is its endpoint's name, and its URL's path."""

    path: str
    event_types: tuple[str, ...]
    behaviour: Behaviour | None = field(default_factory=Behaviour)  # None: hostile
    delays_s: tuple[float, ...] = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
    timeout_s: int = 3
    rate_per_s: int | None = None

    def wants(self, event_type: str) -> bool:
        return event_type in self.event_types

    def request(self, url: str) -> dict[str, Any]:
        """The body of its creation."""
        limit = {"rate_limit": {"requests_per_s": self.rate_per_s, "burst": 5}} if self.rate_per_s else {}
        return {
            "url": url,
            "event_types": list(self.event_types),
            "timeout_s": self.timeout_s,
            "retry_policy": {"delays_s": list(self.delays_s)},
            **limit,
        }


_ORDERS: Final = ("order.created", "order.paid", "order.refunded")

LASTING: Final[Sequence[Wanted]] = (
    Wanted("/healthy", tuple(EVENT_TYPES)),
    Wanted("/flaky", _ORDERS, Behaviour(fail_fraction=0.5)),
    Wanted("/slow", ("order.created", "user.updated"), Behaviour(delay_s=0.3)),
    Wanted("/hanging", _ORDERS, timeout_s=2),  # when it is told to
    Wanted("/failing", ("order.refunded", "user.updated"), Behaviour(status=500), delays_s=(1.0,)),
    Wanted("/paced", ("order.paid",), rate_per_s=40),
    Wanted("/hostile", ("user.deleted",), None, delays_s=(1.0, 1.0), timeout_s=1),
)


def guest(number: int) -> Wanted:
    """One that comes while the soak goes on, and may go."""
    return Wanted(f"/guest-{number}", _ORDERS)


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came to an endpoint. `signed_at` is the second that it was signed in."""

    path: str
    webhook_id: str
    signed_at: int


class _Noting(Hostile):
    """Notes what it is sent, whatever it does then."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []

    async def request(self, reader: StreamReader) -> bytes:
        head = await super().request(reader)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.seen.append(Seen(first.split(" ")[1], headers["webhook-id"], int(headers["webhook-timestamp"])))
        return head


class Endpoints:
    """All of them. The hostile one has a server of its own, and does something else at each connection."""

    def __init__(self, receiver: Receiver, malign: Hostile, noting: _Noting) -> None:
        self.receiver = receiver
        self._malign = malign
        self._noting = noting

    def url(self, wanted: Wanted) -> str:
        """Where the endpoint is, which behaves as it should from now on."""
        if wanted.behaviour is None:
            return self._malign.url(wanted.path)
        return self.receiver.behave(wanted.path, replace(wanted.behaviour))  # a fresh one: it counts

    async def hang(self, path: str, for_s: float) -> None:
        answering = asyncio.Event()
        self.receiver.behave(path, Behaviour(hold=answering))
        try:
            await asyncio.sleep(for_s)
        finally:
            self.receiver.behave(path, Behaviour())
            answering.set()

    async def refuse(self, for_s: float) -> None:
        """All but the hostile one."""
        await self.receiver.stop()
        try:
            await asyncio.sleep(for_s)
        finally:
            await self.receiver.start()

    def be_gone(self, path: str) -> None:
        self.receiver.behave(path, Behaviour(status=410))

    def seen(self) -> list[Seen]:
        of_receiver = [
            Seen(one.path, one.webhook_id, int(one.headers["webhook-timestamp"])) for one in self.receiver.requests
        ]
        return of_receiver + self._noting.seen


@asynccontextmanager
async def endpoints(seed: int) -> AsyncIterator[Endpoints]:
    """Open endpoints."""
    chance, noting = random.Random(seed), _Noting()

    async def script(_: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
        await chance.choice(_SCRIPTS)(noting, reader, writer)

    async with Receiver() as receiver, hostile.hostile(script) as malign:
        yield Endpoints(receiver, malign, noting)
