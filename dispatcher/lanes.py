"""The work in hand: claimed deliveries, each in its endpoint's lane, POSTed a few at a time.

Bounded in deliveries and in bytes. A place is taken when a delivery is to be claimed (`place`) and given back when its
outcome is committed (`done`), so a database that is away fills the hands and stops the taking.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from dispatcher.caps import Caps
from dispatcher.core.gate import FULL, Attempt, Hold, decide, fair_share, room_left
from dispatcher.core.request import Content
from dispatcher.core.settle import Claimed
from dispatcher.index import Endpoint


class Claim(msgspec.Struct, frozen=True, eq=False):
    """A delivery that this dispatcher has claimed, with what its POST needs.

    A Struct, as what else is made for every delivery: a frozen dataclass of eight fields takes 1.6 µs to make, one of
    these 0.1 (measured).

    `claimed_s` is the boot time from before the claiming statement was sent. `in_order`: it was claimed as the lowest
    of its subscription, which strict order asks for.
    """

    delivery: UUID
    event: UUID
    subscription: UUID
    held: Claimed
    claimed_s: float
    content: Content
    in_order: bool = False


@dataclass(slots=True, eq=False)
class _Lane:
    """One endpoint's: live deliveries overtake replays that wait, which may be all that it has in hand."""

    in_hand: int = 0
    workers: int = 0
    answers: int = 0
    live: deque[Claim] = field(default_factory=deque)
    replays: deque[Claim] = field(default_factory=deque)

    @property
    def waiting(self) -> int:
        return len(self.live) + len(self.replays)

    def put(self, claim: Claim) -> None:
        (self.replays if claim.held.cycle else self.live).append(claim)

    def next(self) -> Claim:
        return (self.live or self.replays).popleft()


class Lanes:
    """Places for `max_in_hand` deliveries and `max_in_hand_bytes` of event data.

    `endpoint_max_in_flight` POSTs may be under way to one endpoint, but at first `first_in_flight`: each answer allows
    one more, until nothing of it is in hand (slow start after idle, RFC 5681, section 4.1). So when an endpoint hangs,
    few POSTs time out in one moment; all of them, that moment was felt by every other endpoint.
    """

    def __init__(
        self, *, max_in_hand: int, max_in_hand_bytes: int, endpoint_max_in_flight: int, first_in_flight: int
    ) -> None:
        self.free = max_in_hand
        self.free_bytes = max_in_hand_bytes
        self.held: set[UUID] = set()  # endpoints whose mode is held, as far as we know
        self.in_hand: dict[UUID, Claim] = {}
        self.on_room: Callable[[UUID], None] = lambda _: None
        self.caps = Caps(most_at_once=endpoint_max_in_flight)
        self._first_in_flight = first_in_flight
        self._lanes: dict[UUID, _Lane] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._deliver: Callable[[Claim], Awaitable[bool]] | None = None

    def start(self, deliver: Callable[[Claim], Awaitable[bool]]) -> None:
        """Say what makes an attempt, and returns whether the endpoint answered; before the first `submit`."""
        self._deliver = deliver

    def gate(self, endpoint: Endpoint, size_bytes: int) -> Attempt | Hold:
        """Whether one more delivery to this endpoint may be taken in hand now."""
        if self.free_bytes < size_bytes:
            return FULL
        return decide(
            blocked=endpoint.blocked,
            held=endpoint.id in self.held,
            paced=endpoint.limit is not None,
            ordered=endpoint.ordered,
            in_hand=self.in_hand_of(endpoint.id),
            free=self.free,
            cap=self._cap(endpoint),
        )

    def in_hand_of(self, subscription: UUID) -> int:
        """How many deliveries to this endpoint are in hand."""
        lane = self._lanes.get(subscription)
        return lane.in_hand if lane else 0

    def waiting_of(self, subscription: UUID) -> int:
        """How many deliveries to this endpoint are in hand and not begun."""
        lane = self._lanes.get(subscription)
        return lane.waiting if lane else 0

    def room_of(self, endpoint: Endpoint) -> int:
        """How many more deliveries this endpoint's backlog may send here."""
        return max(0, room_left(in_hand=self.in_hand_of(endpoint.id), free=self.free, cap=self._cap(endpoint)))

    def place(self, subscription: UUID, size_bytes: int) -> None:
        """Take a place for a delivery that is about to be claimed."""
        lane = self._lanes.get(subscription)
        if lane is None:
            lane = self._lanes[subscription] = _Lane()
        lane.in_hand += 1
        self.free -= 1
        self.free_bytes -= size_bytes

    @contextmanager
    def reserved(self, count: int) -> Iterator[None]:
        """Keep places for stored deliveries while they are claimed; whoever claims meanwhile counts on the others.

        On leaving they are free again: what was claimed is placed before anything else is awaited.
        """
        self.free -= count
        try:
            yield
        finally:
            self.free += count
            self._room.set()

    def give_back(self, subscription: UUID, size_bytes: int) -> None:
        """Give a place back: its delivery was not claimed after all, or its outcome is committed."""
        lane = self._lanes[subscription]
        lane.in_hand -= 1
        self.free += 1
        self.free_bytes += size_bytes
        if not lane.in_hand:
            del self._lanes[subscription]
        self._room.set()
        if subscription in self.held:
            self.on_room(subscription)

    def take(self, claim: Claim) -> None:
        """Know a delivery as in hand, its place taken before: as soon as it is claimed, or the reconciler holds it."""
        self.in_hand[claim.delivery] = claim

    def submit(self, claim: Claim) -> None:
        """Have a delivery in hand attempted."""
        lane = self._lanes[claim.subscription]
        lane.put(claim)
        self._staff(lane, claim.subscription)

    def done(self, claim: Claim) -> None:
        """The outcome is committed."""
        if self.in_hand.get(claim.delivery) is claim:
            del self.in_hand[claim.delivery]
        self.give_back(claim.subscription, len(claim.content.data))

    async def room(self, size_bytes: int) -> None:
        """Wait until there is a free place, and room for an event of this size."""
        while self.free <= 0 or self.free_bytes < size_bytes:
            self._room.clear()
            await self._room.wait()

    def take_waiting(self) -> list[Claim]:
        """Everything whose POST has not begun, taken out of the lanes: a stopping dispatcher holds it."""
        waiting = [claim for lane in self._lanes.values() for claim in (*lane.live, *lane.replays)]
        for lane in self._lanes.values():
            lane.live.clear()
            lane.replays.clear()
        return waiting

    async def finish(self, *, limit_s: float) -> None:
        """Wait for the POSTs under way; after `limit_s` seconds interrupt them."""
        if not self._workers:
            return
        _, late = await asyncio.wait(self._workers, timeout=limit_s)
        for worker in late:
            worker.cancel()
        if late:
            await asyncio.wait(late)

    def _cap(self, endpoint: Endpoint) -> int | None:
        return self.caps.cap(endpoint.id, endpoint.url, share=fair_share(self.free))

    def _at_once(self, lane: _Lane, subscription: UUID) -> int:
        return min(self.caps.at_once(subscription), self._first_in_flight + lane.answers)

    def _staff(self, lane: _Lane, subscription: UUID) -> None:
        """One more worker, if something waits and one more POST may be under way."""
        if lane.waiting and lane.workers < self._at_once(lane, subscription):
            lane.workers += 1
            worker = asyncio.create_task(self._work(lane, subscription), name="deliver")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self, lane: _Lane, subscription: UUID) -> None:
        # One task delivers several in a row: a task for each costs more than the hand-over (asyncio, 10 µs).
        assert self._deliver is not None
        try:
            while lane.waiting and lane.workers <= self._at_once(lane, subscription):
                answered = await self._deliver(lane.next())  # others add to the sum meanwhile
                lane.answers += answered
                self._staff(lane, subscription)  # what was too many for it may not be by now
        finally:
            lane.workers -= 1
