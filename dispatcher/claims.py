"""Claims on deliveries that are stored already: due ones by their work item, held ones by the feeder."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg

from dispatcher.clock import boot_s
from dispatcher.core.request import Content
from dispatcher.core.settle import Claimed
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import SubscriptionIndex
from dispatcher.lanes import Claim
from infra.store import statements as sql
from infra.store.store import Store
from schemas.work import WorkItem


class Opening(NamedTuple):
    """An endpoint that may be opened if no more than `most` of its backlog are claimed. `full_in_s`: in so many seconds
    the bucket of its rate limit is full."""

    most: int
    full_in_s: float


class Fed(NamedTuple):
    """Claims on held deliveries, and the endpoints that were opened with them."""

    claims: list[Claim]
    opened: Sequence[UUID]


OpeningsOf = Callable[[Collection[UUID]], Mapping[UUID, Opening]]


class Claims:
    """Claims for one incarnation. The index is made current in the same transaction, after the claim: what was stored
    after a change of its subscription had been answered is sent as that change has it."""

    def __init__(self, store: Store, index: SubscriptionIndex, heartbeat: Heartbeat) -> None:
        self._store = store
        self._index = index
        self._heartbeat = heartbeat

    async def due(self, items: Sequence[WorkItem]) -> list[Claim]:
        """Claim what these work items say is due. An item whose row has moved on claims nothing. Raises StoreError."""
        unique = {(item.delivery, item.cycle, item.attempt) for item in items}
        ordered = sorted(unique)
        claimed_s = boot_s()
        async with self._store.transaction() as connection:
            rows = await self._fetch(
                connection,
                sql.CLAIM_DUE,
                [delivery for delivery, _, _ in ordered],
                [cycle for _, cycle, _ in ordered],
                [attempt for _, _, attempt in ordered],
                ordered[0][0],
            )
            await self._index.refresh(connection)
            return await _with_events(connection, rows, claimed_s)

    async def held(self, rooms: Mapping[UUID, int], openings_of: OpeningsOf = lambda _: {}) -> Fed:
        """Claim from backlogs whose leases this dispatcher holds, of each so many at most, and open endpoints of which
        nothing is held any more. Raises StoreError.

        In strict order it is the next one at most, and only if it may go now. `openings_of` is asked when the index is
        current.
        """
        claimed_s = boot_s()
        async with self._store.transaction() as connection:
            await self._index.refresh(connection)  # for what is in order
            in_order = sorted(one for one in rooms if (endpoint := self._index.get(one)) and endpoint.ordered)
            if openings := openings_of(rooms):
                # Before the claims, so that nothing is held in between. Who has the lock is holding something just now,
                # or is slow: it is not waited for, or all the other backlogs would wait as well.
                free = await connection.fetch(sql.LOCK_FREE_LEASES, self._heartbeat.incarnation, sorted(openings))
                openings = {row["id"]: openings[row["id"]] for row in free}
            rows: list[asyncpg.Record] = []
            if in_order:
                await connection.execute(sql.LOCK_LEASES, self._heartbeat.incarnation, in_order)
                rows += await self._fetch(connection, sql.CLAIM_IN_ORDER, in_order)
            if others := {one: room for one, room in rooms.items() if one not in in_order}:
                rows += await self._fetch(connection, sql.CLAIM_HELD, list(others), list(others.values()))
            if rows:
                await self._index.refresh(connection)
            opened = await self._open(connection, openings, Counter(row["subscription_id"] for row in rows))
            return Fed(await _with_events(connection, rows, claimed_s, in_order=in_order), opened)

    async def _open(
        self, connection: asyncpg.Connection, openings: Mapping[UUID, Opening], claimed: Mapping[UUID, int]
    ) -> Sequence[UUID]:
        over = sorted(one for one, opening in openings.items() if claimed.get(one, 0) <= opening.most)
        if not over:
            return []
        full_in_s = [openings[one].full_in_s for one in over]
        opened = await connection.fetch(sql.CLOSE_BACKLOGS, self._heartbeat.incarnation, over, full_in_s)
        return [row["id"] for row in opened]

    async def lost(self, known: set[UUID], *, age_s: float) -> list[Claim]:
        """Claims of ours that are older than `age_s` and not among `known`: their commit's answer was lost."""
        async with self._store.connection() as connection:
            rows = await connection.fetch(sql.CLAIMS_OF, self._heartbeat.incarnation, age_s)
            return await _with_events(connection, [row for row in rows if row["id"] not in known], boot_s())

    async def _fetch(
        self, connection: asyncpg.Connection, statement: str, *arguments: object
    ) -> Sequence[asyncpg.Record]:
        times = self._heartbeat.times
        rows: Sequence[asyncpg.Record] = await connection.fetch(
            statement, self._heartbeat.incarnation, times.liveness_s - times.margin_s, *arguments
        )
        return rows


async def _with_events(
    connection: asyncpg.Connection, rows: Sequence[asyncpg.Record], claimed_s: float, *, in_order: Collection[UUID] = ()
) -> list[Claim]:
    if not rows:
        return []
    events = sorted({row["event_id"] for row in rows})
    found = {
        event["id"]: Content(
            type=event["type"],
            time=event["time"],
            data=event["data"],
            source=event["source"],
            external_id=event["external_id"],
            subject=event["subject"],
            headers=event["headers"],
            traceparent=event["traceparent"],
            expunged=event["expunged"],
        )
        for event in await connection.fetch(sql.EVENTS_OF_CLAIMS, events, events[0], events[-1])
    }
    return [
        Claim(
            delivery=row["id"],
            event=row["event_id"],
            subscription=row["subscription_id"],
            held=Claimed(cycle=row["cycle"], attempt=row["attempts"] + 1, fence=row["fence"]),
            claimed_s=claimed_s,
            content=found[row["event_id"]],  # in the same day's partition as its delivery: they are dropped together
            in_order=row["subscription_id"] in in_order,
        )
        for row in sorted(rows, key=lambda row: row["id"])
    ]
