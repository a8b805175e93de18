"""The books of a run with faults: what was confirmed, what endpoints saw, what was committed; and whether it adds up.

A POST that an endpoint saw and that no attempt records was lost with the dispatcher that made it. Right after a fault,
while nobody works, those are exactly the POSTs that had begun and whose outcome was not committed (`note_fault`). At
the end there may be no other ones.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aio_pika

from infra.broker.base import Queue
from infra.broker.ladder import RUNGS_MS
from schemas.ids import EVENT, public_id
from tests.support.receivers import Receiver
from tests.support.system import System
from tests.support.waiting import eventually

Posts = Counter[tuple[str, str]]  # by webhook-id and path

_RECORDED = """
SELECT d.event_id, a.url, count(*) AS number FROM attempts AS a JOIN deliveries AS d ON d.id = a.delivery_id
WHERE a.failure IS DISTINCT FROM 'connect' GROUP BY d.event_id, a.url
"""

# Each row of these is something that must not be, once all work is done.
_FAULTS: Mapping[str, str] = {
    "a delivery that has not ended": "SELECT id, status, reason FROM deliveries "
    "WHERE status NOT IN ('delivered', 'dead', 'canceled')",
    "a claim that nobody freed": "SELECT id, status, claimed_by FROM deliveries WHERE claimed_by IS NOT NULL",
    "an endpoint that is held for nothing": "SELECT id, url, feeder FROM subscriptions "
    "WHERE mode = 'held' AND state = 'enabled' AND deleted_at IS NULL",
    "a death without its one dead letter": "SELECT d.id, count(l.id) FROM deliveries AS d LEFT JOIN dead_letters AS l "
    "ON l.delivery_id = d.id AND l.cycle = d.cycle WHERE d.status = 'dead' GROUP BY d.id HAVING count(l.id) <> 1",
    "a dead letter that was not published": "SELECT id, delivery_id FROM dead_letters "
    "WHERE kind = 'delivery' AND published_at IS NULL",
    "an attempt number that counted twice": "SELECT delivery_id, cycle, number, count(*) FROM attempts "
    "WHERE NOT superseded GROUP BY delivery_id, cycle, number HAVING count(*) > 1",
    "attempts that disagree with their delivery": "SELECT d.id, d.attempts, count(a.id) FROM deliveries AS d "
    "LEFT JOIN attempts AS a ON a.delivery_id = d.id AND a.cycle = d.cycle AND NOT a.superseded "
    "GROUP BY d.id, d.attempts HAVING count(a.id) <> d.attempts",
    "a delivery without its success": "SELECT d.id FROM deliveries AS d WHERE d.status = 'delivered' AND NOT EXISTS "
    "(SELECT 1 FROM attempts AS a WHERE a.delivery_id = d.id AND a.cycle = d.cycle AND a.outcome = 'delivered')",
}


@dataclass(slots=True)
class Books:
    """The books of one installation with one receiver; `lost` are the POSTs that faults took."""

    system: System
    receiver: Receiver
    lost: Posts = field(default_factory=Counter)

    async def note_fault(self) -> None:
        """Every dispatcher is dead just now: remember which POSTs had begun and were not committed."""
        await self.receiver.quiet()
        self.lost = await self._unrecorded()

    async def check(self, events: int | None = None, *, paths: int = 1, deadline_s: float = 30) -> None:
        """Wait until nothing is left to do and everything adds up; fail at the deadline with what does not.

        Each of so many `events` must have a delivery to each of so many `paths`.
        """

        async def findings() -> list[str]:
            return await self._miscounted(events, paths) or await self._unsettled()

        async def right() -> bool:
            return not await findings()

        await eventually(right, findings, deadline_s=deadline_s)

    async def _miscounted(self, events: int | None, paths: int) -> list[str]:
        stored = await self.system.value("SELECT count(*) FROM events")
        made = await self.system.value("SELECT count(*) FROM deliveries")
        if events is not None and (stored, made) != (events, events * paths):
            return [f"{stored} events and {made} deliveries, of {events} events to {paths} endpoints"]
        unexplained = await self._unrecorded()
        unexplained.subtract(self.lost)
        return [f"{times:+} POST of {key} that no fault explains" for key, times in unexplained.items() if times]

    async def _unrecorded(self) -> Posts:
        """POSTs that endpoints saw and no attempt tells of; below zero, attempts that no endpoint saw."""
        seen: Posts = Counter((request.webhook_id, request.path) for request in self.receiver.requests)
        for row in await self.system.fetch(_RECORDED):
            seen[public_id(EVENT, row["event_id"]), urlsplit(row["url"]).path] -= row["number"]
        return Counter({key: number for key, number in seen.items() if number})

    async def _unsettled(self) -> list[str]:
        findings = [
            f"{what}: {dict(row)}"
            for what, statement in _FAULTS.items()
            for row in await self.system.fetch(f"{statement} LIMIT 3")
        ]
        if not findings:
            findings = [f"{number} messages in {queue}" for queue, number in (await in_queues(self.system)).items()]
        return findings


async def in_queues(system: System) -> dict[str, int]:
    """How many messages are in each queue that is not empty, the rungs of the ladder included."""
    if not system.broker_url.startswith("amqp"):
        rows = await system.fetch("SELECT queue, count(*) AS number FROM queue_messages GROUP BY queue")
        return {row["queue"]: row["number"] for row in rows}
    async with await aio_pika.connect(system.broker_url) as connection:
        channel = await connection.channel()
        names = [*(queue.value for queue in Queue), *(f"hookhare.retry.{ms}" for ms in RUNGS_MS)]
        queues = [await channel.declare_queue(name, passive=True) for name in names]
        return {one.name: number for one in queues if (number := one.declaration_result.message_count)}
