"""Admission: event messages become rows, in groups, and then they are acked.

One transaction holds the subscriptions' version shared, takes the keys, stores the events and a row for every match.
What the gate lets through is claimed by the same rows and attempted as soon as the messages are acked: the express
lane. An event that is known already is acked; one that cannot be read goes to the dead letters; neither keeps the
others waiting.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from operator import itemgetter
from time import perf_counter
from uuid import UUID

import asyncpg
import structlog
from uuid_utils.compat import uuid7

from dispatcher.burial import Burials
from dispatcher.clock import boot_s, wall
from dispatcher.core.gate import Hold
from dispatcher.core.request import content_of
from dispatcher.core.settle import Claimed
from dispatcher.event_checks import EventChecks
from dispatcher.heartbeat import Heartbeat
from dispatcher.incoming import Incoming, event_row, record_conflict
from dispatcher.index import Endpoint, SubscriptionIndex, wanting
from dispatcher.lanes import Claim, Lanes
from dispatcher.roles import Role, RoleLost
from infra.broker.base import Consumer, Queue, Received
from infra.broker.open import messaging_system
from infra.settings import Settings
from infra.store import statements as sql
from infra.store.arrays import arrays
from infra.store.locks import share_subscriptions
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.errors import Problem, StoreError
from schemas.events import Event, Unreadable, read_event
from schemas.ids import EVENT, delivery_key, event_key, public_id

log = structlog.get_logger(__name__)

LAPSED = Hold("the dispatcher's heartbeat lapsed")
_LONGEST_PAUSE_S = 2.0
_ROWS_A_STATEMENT = 5000  # of one event's fan-out, so that no statement meets its timeout


@dataclass(slots=True)
class _Admitted:
    """What one transaction wrote."""

    claims: list[Claim] = field(default_factory=list)
    held: set[UUID] = field(default_factory=set)
    refused: list[tuple[Received, Event, Problem]] = field(default_factory=list)
    events: int = 0
    duplicates: int = 0
    conflicts: int = 0


class GivenBack(Exception):
    """An event of those in hand cannot be admitted: in order, all that is not acked has to go back with it."""


class Admission:
    """Consumes the events queue; under a `role`, in order."""

    def __init__(
        self,
        store: Store,
        burials: Burials,
        index: SubscriptionIndex,
        lanes: Lanes,
        heartbeat: Heartbeat,
        telemetry: Telemetry,
        settings: Settings,
        role: Role | None = None,
    ) -> None:
        self._role = role
        self._checks = EventChecks(settings, telemetry)
        self._store = store
        self._burials = burials
        self._index = index
        self._lanes = lanes
        self._heartbeat = heartbeat
        self._telemetry = telemetry
        self._settings = settings
        self._system = messaging_system(settings)

    async def run(self, consumer: Consumer) -> None:
        """Admit for ever; at the bound of the work in hand, stop taking. What is unreadable goes its own way."""
        async with self._burials:
            while True:
                await self._lanes.room(self._settings.max_event_bytes)
                received = await consumer.receive(self._settings.batch_rows)
                incoming, unreadable = self._read(received)
                if unreadable:
                    self._burials.begin(consumer, unreadable)
                await self._admit_all(consumer, incoming)

    def _read(self, received: Sequence[Received]) -> tuple[list[Incoming], list[tuple[Received, Unreadable]]]:
        incoming, unreadable = [], []
        now = wall()
        now_ms = int(now.timestamp() * 1000)
        for one in received:
            read = read_event(one.message, now=now, fresh_id=str(uuid7()), max_bytes=self._settings.max_event_bytes)
            if isinstance(read, Unreadable):
                unreadable.append((one, read))
            else:
                key = event_key(read.accepted_ms or now_ms, read.tenant, read.source, read.external_id)
                incoming.append(Incoming(key, read, one, content_of(read)))
        return incoming, unreadable

    async def _admit_all(self, consumer: Consumer, incoming: Sequence[Incoming]) -> None:
        """Admit in transactions of at most `batch_rows` deliveries (one event's fan-out is never split)."""
        rest = list(incoming)
        while rest:
            taken = await self._admit_some(consumer, rest)
            rest = rest[taken:]

    async def _admit_some(self, consumer: Consumer, incoming: Sequence[Incoming]) -> int:
        """Admit a beginning of `incoming` and say how long it was. Tries until the database takes it."""
        pause_s = 0.05
        while True:
            began = perf_counter()
            placed: list[tuple[UUID, int]] = []
            try:
                with self._span(incoming):
                    batch, taken, admitted = await self._commit(incoming, placed)
                break
            except RoleLost:
                self._displace(placed)
                raise
            except Exception as error:  # noqa: BLE001 - its kind decides what is done
                self._displace(placed)
                if not _is_its_own_fault(error):
                    # If the commit did take effect, the events are found as duplicates now, and their claims, which
                    # are ours and not in hand, are held by the reconciler.
                    log.warning("admission.retry", events=len(incoming), error=f"{type(error).__name__}: {error}")
                elif len(incoming) == 1:
                    await self._refuse(consumer, incoming[0], error)
                    return 1
                else:
                    incoming = incoming[:1]
                    continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        for claim in admitted.claims:
            self._lanes.take(claim)
        try:
            if admitted.refused:
                self._burials.begin_invalid(consumer, admitted.refused)
            await consumer.ack([one.received for one in taken])
        finally:  # also when a stopping dispatcher interrupts the ack: what is claimed has to get an outcome
            self._telemetry.metrics.admit_s.record(perf_counter() - began)
            self._begin(admitted)
        return len(batch)

    async def _refuse(self, consumer: Consumer, one: Incoming, error: Exception) -> None:
        """An event that cannot be admitted by itself: to the dead letters if its content is why, else given back.

        Given back again and again it passes the delivery limit, and the broker dead-letters it.
        """
        if isinstance(error, asyncpg.DataError | UnicodeError):
            why = Unreadable("event", f"the store does not take it: {type(error).__name__}")
            self._burials.begin(consumer, [(one.received, why)])
        else:
            log.error("admission.failed", event_id=public_id(EVENT, one.key), exc_info=error)
            await asyncio.sleep(_LONGEST_PAUSE_S)
            if self._role is not None:
                raise GivenBack
            await consumer.release([one.received])

    def _span(self, incoming: Sequence[Incoming]) -> AbstractContextManager[None]:
        return self._telemetry.message_span(
            "process",
            Queue.EVENTS,
            system=self._system,
            traceparents=[one.event.traceparent for one in incoming],
        )

    def _begin(self, admitted: _Admitted) -> None:
        metrics = self._telemetry.metrics
        metrics.events_admitted.add(admitted.events)
        metrics.events_duplicate.add(admitted.duplicates)
        metrics.events_conflict.add(admitted.conflicts)
        self._lanes.held |= admitted.held
        for claim in admitted.claims:
            self._lanes.submit(claim)
        for subscription in admitted.held:
            self._lanes.on_room(subscription)

    def _displace(self, placed: Sequence[tuple[UUID, int]]) -> None:
        for subscription, size_bytes in placed:
            self._lanes.give_back(subscription, size_bytes)

    async def _commit(
        self, incoming: Sequence[Incoming], placed: list[tuple[UUID, int]]
    ) -> tuple[Sequence[Incoming], Sequence[Incoming], _Admitted]:
        """What was looked at, a beginning of `incoming`; and of that, what the catalogue does not refuse."""
        claimed_s = boot_s()
        liveness = self._heartbeat.times
        async with self._store.transaction() as connection:
            if self._role is not None:
                await self._role.share(connection)
            await share_subscriptions(connection)
            view = await connection.fetchrow(
                sql.ADMISSION_VIEW, self._heartbeat.incarnation, liveness.liveness_s - liveness.margin_s
            )
            assert view is not None
            await self._index.refresh(connection)
            batch, matches = await self._match(incoming)
            looked_at, refused = await self._checks.refused(
                connection, self._index.version, [one.event for one in batch]
            )
            batch = batch[:looked_at]
            taken = [one for place, one in enumerate(batch) if place not in refused]
            admitted = _Admitted(
                refused=[(batch[place].received, batch[place].event, why) for place, why in refused.items()]
            )
            new = await self._take_keys(connection, taken, admitted) if taken else []
            await self._store_events(connection, new)
            rows = [(one, endpoint) for one in new for endpoint in matches[one.key]]
            await self._store_deliveries(connection, rows, admitted, placed, claimed_s, fresh=view["fresh"])
        return batch, taken, admitted

    async def _match(self, incoming: Sequence[Incoming]) -> tuple[Sequence[Incoming], dict[UUID, list[Endpoint]]]:
        """As many of the events, from the first on, as their matches fit into one transaction."""
        matches: dict[UUID, list[Endpoint]] = {}
        rows = 0
        for position, one in enumerate(incoming):
            matched = list(self._index.match(one.event.tenant, one.event.type))
            found = await wanting(matched, one.event.tenant, one.content)
            rows += len(found)
            if position and rows > self._settings.batch_rows:
                return incoming[:position], matches
            matches[one.key] = found
        return incoming, matches

    async def _take_keys(
        self, connection: asyncpg.Connection, batch: Sequence[Incoming], admitted: _Admitted
    ) -> list[Incoming]:
        """The events whose key is new; the others are counted, and recorded where their content differs."""
        first: dict[tuple[str, str, str], Incoming] = {}
        for one in batch:
            first.setdefault(one.unique, one)
        asked = list(first.values())
        keys = await connection.fetch(
            sql.TAKE_EVENT_KEYS,
            *map(list, zip(*(one.unique for one in asked), strict=True)),
            [one.key for one in asked],
            [one.event.digest for one in asked],
            float(self._settings.dedupe_window_s),
        )
        taken = {record["event_id"] for record in keys}
        new = [one for one in asked if one.key in taken]
        repeats = [one for one in batch if first[one.unique] is not one or one.key not in taken]
        if repeats:
            known = {
                (record["tenant"], record["source"], record["external_id"]): (record["event_id"], record["digest"])
                for record in await connection.fetch(
                    sql.KNOWN_EVENT_KEYS, *map(list, zip(*(one.unique for one in repeats), strict=True))
                )
            }
            for one in repeats:
                event, digest = known.get(one.unique, (None, one.event.digest))
                if digest == one.event.digest:
                    admitted.duplicates += 1
                else:
                    admitted.conflicts += 1
                    await record_conflict(connection, one, event)
        admitted.events = len(new)
        return new

    async def _store_events(self, connection: asyncpg.Connection, new: Sequence[Incoming]) -> None:
        if new:
            await connection.execute(sql.INSERT_EVENTS, *arrays([event_row(one) for one in new]))

    async def _store_deliveries(
        self,
        connection: asyncpg.Connection,
        rows: Sequence[tuple[Incoming, Endpoint]],
        admitted: _Admitted,
        placed: list[tuple[UUID, int]],
        claimed_s: float,
        *,
        fresh: bool,
    ) -> None:
        """A row for every match, claimed or held as the gate says; the endpoints of held rows become held."""
        if not rows:
            return
        decisions, held = await self._decided(connection, rows, placed, fresh=fresh)
        admitted.held.update(held)
        values = []
        claims: dict[UUID, Claim] = {}
        for (one, endpoint), decision in zip(rows, decisions, strict=True):
            key = delivery_key(one.key, endpoint.id)
            if decision is None:
                claims[key] = _claim(key, one, endpoint, claimed_s)
            reason = None if decision is None else decision.reason
            values.append((key, one.key, endpoint.id, one.event.tenant, one.event.type, reason))
        ordinals = await _draw_ordinals(connection, [endpoint.ordered for _, endpoint in rows])
        by_id = sorted(((*row, ordinal) for row, ordinal in zip(values, ordinals, strict=True)), key=itemgetter(0))
        ours: set[UUID] = set()
        for start in range(0, len(by_id), _ROWS_A_STATEMENT):
            some = arrays(by_id[start : start + _ROWS_A_STATEMENT])
            written = await connection.fetch(sql.INSERT_DELIVERIES, self._heartbeat.incarnation, *some)
            ours.update(record["id"] for record in written)
        for key, claim in claims.items():
            if key in ours:
                admitted.claims.append(claim)
            else:
                placed.remove((claim.subscription, len(claim.content.data)))
                self._lanes.give_back(claim.subscription, len(claim.content.data))
        self._telemetry.metrics.deliveries_created.add(len(ours))

    async def _decided(
        self,
        connection: asyncpg.Connection,
        rows: Sequence[tuple[Incoming, Endpoint]],
        placed: list[tuple[UUID, int]],
        *,
        fresh: bool,
    ) -> tuple[Sequence[Hold | None], Sequence[UUID]]:
        """What the gate says of each row; the endpoints of those that it holds, which are held then."""
        decisions = [self._decide(one, endpoint, placed, fresh=fresh) for one, endpoint in rows]
        if held := _held(rows, decisions):
            locked = await connection.fetch(sql.LOCK_ENDPOINTS, held)
            # Its feeder may have opened one since all that are held were looked at. Were it held for that, it would be
            # held again as long as anybody does not know.
            opened = self._lanes.held & {row["id"] for row in locked if row["mode"] == "open"}
            self._lanes.held -= opened
            decisions = [
                self._decide(one, endpoint, placed, fresh=fresh) if why is not None and endpoint.id in opened else why
                for (one, endpoint), why in zip(rows, decisions, strict=True)
            ]
            if held := _held(rows, decisions):
                await connection.execute(sql.HOLD_ENDPOINTS, held)
        return decisions, held

    def _decide(self, one: Incoming, endpoint: Endpoint, placed: list[tuple[UUID, int]], *, fresh: bool) -> Hold | None:
        """Why to hold it; or None, and its place is taken."""
        size_bytes = len(one.event.data)
        decision = self._lanes.gate(endpoint, size_bytes) if fresh else LAPSED
        if isinstance(decision, Hold):
            return decision
        self._lanes.place(endpoint.id, size_bytes)
        placed.append((endpoint.id, size_bytes))
        return None


def _held(rows: Sequence[tuple[Incoming, Endpoint]], decisions: Sequence[Hold | None]) -> list[UUID]:
    return sorted({endpoint.id for (_, endpoint), why in zip(rows, decisions, strict=True) if why is not None})


def _is_its_own_fault(error: Exception) -> bool:
    """Whether an event of the batch may be why it failed, rather than the database, which is waited for."""
    if isinstance(error, asyncpg.PostgresError):
        return isinstance(error, asyncpg.DataError)
    return not isinstance(error, StoreError)


def _claim(key: UUID, one: Incoming, endpoint: Endpoint, claimed_s: float) -> Claim:
    return Claim(
        delivery=key,
        event=one.key,
        subscription=endpoint.id,
        held=Claimed(cycle=0, attempt=1, fence=1),
        claimed_s=claimed_s,
        content=one.content,
    )


async def _draw_ordinals(connection: asyncpg.Connection, ordered: Sequence[bool]) -> Sequence[int | None]:
    """For each row, as the messages came: its place if its endpoint, which is locked, is in strict order."""
    if not any(ordered):
        return [None] * len(ordered)
    drawn = iter([record["ordinal"] for record in await connection.fetch(sql.DRAW_ORDINALS, sum(ordered))])
    return [next(drawn) if one else None for one in ordered]
