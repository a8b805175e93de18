"""What is known at the end of a soak: the books of those who took part, and the rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from schemas.ids import EVENT, SUBSCRIPTION, public_id
from tests.soak.chronicle import Chronicle
from tests.soak.endpoints import Seen
from tests.soak.operators import Asked, Subscribed
from tests.soak.publishing import SOURCE, Event
from tests.support.system import System


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of `attempts`. `reached` is False when no connection came about, `answered` when there was a status."""

    number: int
    cycle: int
    signed_at: int
    outcome: str
    superseded: bool
    reached: bool
    answered: bool
    dispatcher: UUID


@dataclass(frozen=True, slots=True)
class Delivery:
    """A row of `deliveries`, with its attempts in order."""

    id: UUID
    webhook_id: str
    event_id: str  # the producer's
    subscription: str
    path: str
    status: str
    cycle: int
    attempts: Sequence[Attempt]


@dataclass(frozen=True, slots=True)
class Change:
    """What a delivery's row became, and when."""

    at: float
    status: str
    reason: str | None
    cycle: int
    attempts: int
    fence: int
    claimed_by: UUID | None


@dataclass(frozen=True, slots=True)
class Message:
    """A dead letter that is a message."""

    kind: str
    reason: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """What the database says."""

    admitted: Mapping[str, Sequence[float]]  # when each event was, by the producer's id; more than one is one too many
    deliveries: Sequence[Delivery]
    messages: Sequence[Message]
    replayed_in_bulk: int
    pids: Mapping[UUID, int]  # of every dispatcher there was
    judged: Sequence[tuple[UUID, UUID, float]]  # whose claim, on what, and when it was taken for dead
    revived: Sequence[UUID]  # deliveries that changed after their end, and not by a replay


@dataclass(frozen=True, slots=True)
class Facts:
    """The rows, and the books of those who took part."""

    rows: Rows
    events: Sequence[Event]
    subscribed: Sequence[Subscribed]
    poison: Mapping[bytes, bool]  # whether each was confirmed
    replayed: Asked
    chronicle: Chronicle
    seen: Sequence[Seen]


_EVENTS = "SELECT external_id, extract(epoch FROM admitted_at)::float8 AS at FROM events WHERE source = $1"

_DELIVERIES = """
SELECT d.id, d.event_id, e.external_id, d.subscription_id, s.url, d.status, d.cycle
FROM deliveries AS d JOIN events AS e ON e.id = d.event_id JOIN subscriptions AS s ON s.id = d.subscription_id
"""

_ATTEMPTS = """
SELECT delivery_id, number, cycle, floor(extract(epoch FROM started_at))::bigint AS signed_at, outcome, superseded,
       failure IS DISTINCT FROM 'connect' AS reached, status_code IS NOT NULL AS answered, dispatcher
FROM attempts ORDER BY id
"""

_MESSAGES = "SELECT kind, reason, body FROM dead_letters WHERE kind <> 'delivery'"

TAKEN_FOR_DEAD: Final = "its dispatcher died"

_JUDGED = f"""
SELECT owner, delivery_id, extract(epoch FROM at)::float8 AS at FROM (
    SELECT delivery_id, at, status, reason, claimed_by,
           lag(claimed_by) OVER (PARTITION BY delivery_id ORDER BY id) AS owner FROM soak_history
) AS changes WHERE owner IS NOT NULL AND claimed_by IS NULL AND status = 'held' AND reason = '{TAKEN_FOR_DEAD}'
"""

_REVIVED = """
SELECT DISTINCT delivery_id FROM (
    SELECT delivery_id, status, cycle, fence,
           lag(status) OVER w AS status_before, lag(cycle) OVER w AS cycle_before, lag(fence) OVER w AS fence_before
    FROM soak_history WINDOW w AS (PARTITION BY delivery_id ORDER BY id)
) AS changes
WHERE cycle < cycle_before OR fence < fence_before
   OR (status_before IN ('delivered', 'dead', 'canceled') AND status <> status_before AND cycle = cycle_before)
"""

_HISTORY = """
SELECT delivery_id, extract(epoch FROM at)::float8 AS at, status, reason, cycle, attempts, fence, claimed_by
FROM soak_history WHERE delivery_id = ANY($1::uuid[]) ORDER BY id
"""


async def read_rows(system: System) -> Rows:
    """Everything, once nothing moves any more."""
    admitted: dict[str, list[float]] = {}
    for row in await system.fetch(_EVENTS, SOURCE):
        admitted.setdefault(row["external_id"], []).append(row["at"])
    return Rows(
        admitted=admitted,
        deliveries=await _deliveries(system),
        messages=[Message(row["kind"], row["reason"], row["body"]) for row in await system.fetch(_MESSAGES)],
        replayed_in_bulk=await system.value("SELECT coalesce(sum(replayed), 0)::int FROM replays"),
        pids={row["id"]: row["pid"] for row in await system.fetch("SELECT id, pid FROM soak_dispatchers")},
        judged=[(row["owner"], row["delivery_id"], row["at"]) for row in await system.fetch(_JUDGED)],
        revived=[row["delivery_id"] for row in await system.fetch(_REVIVED)],
    )


async def _deliveries(system: System) -> list[Delivery]:
    attempts: dict[UUID, list[Attempt]] = {}
    for row in await system.fetch(_ATTEMPTS):
        values = {name: row[name] for name in row.keys() if name != "delivery_id"}  # noqa: SIM118  a record, not a dict
        attempts.setdefault(row["delivery_id"], []).append(Attempt(**values))
    return [
        Delivery(
            id=row["id"],
            webhook_id=public_id(EVENT, row["event_id"]),
            event_id=row["external_id"],
            subscription=public_id(SUBSCRIPTION, row["subscription_id"]),
            path=urlsplit(row["url"]).path,
            status=row["status"],
            cycle=row["cycle"],
            attempts=attempts.get(row["id"], ()),
        )
        for row in await system.fetch(_DELIVERIES)
    ]


async def read_history(system: System, deliveries: Sequence[UUID]) -> Mapping[UUID, Sequence[Change]]:
    history: dict[UUID, list[Change]] = {}
    for row in await system.fetch(_HISTORY, list(deliveries)):
        values = {name: row[name] for name in row.keys() if name != "delivery_id"}  # noqa: SIM118
        history.setdefault(row["delivery_id"], []).append(Change(**values))
    return history
