"""What became of a delivery, in order of time: from its rows, and nothing that no row says. Pure.

The rows keep attempts, deaths and how the delivery stands now, and the audit log what was done to this delivery alone.
So a wait that is over has no entry, and neither has the beginning of a cycle before the last one, unless it was by
hand, or the cycle before it ended in a death, whose letter tells.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, Literal, cast

from consumer_api.views import TimelineEntryView, TimelineStep
from infra.store.audit import Deed
from infra.store.dead_letters import DeadLetterRow
from infra.store.deliveries import DeliveryRow
from infra.store.history import AttemptRow
from schemas.deliveries import Status
from schemas.ids import ATTEMPT, DEAD_LETTER, REPLAY, key_time, public_id

BY_HAND: Final = ("delivery.replayed", "delivery.retried")  # actions of the audit log


def timeline(
    row: DeliveryRow,
    attempts: Sequence[AttemptRow],
    letters: Sequence[DeadLetterRow],
    by_hand: Sequence[Deed],
    *,
    admitted_at: datetime | None,
) -> list[TimelineEntryView]:
    """The entries, the earliest first."""
    entries = [_entry(key_time(row.event_id), "event_accepted", 0)]
    if admitted_at is not None:
        entries.append(_entry(admitted_at, "event_admitted", 0))
    entries += _beginnings(row, letters, by_hand)
    entries += [
        _entry(deed.created_at, "retried", (deed.after or {}).get("cycle", 0))
        for deed in by_hand
        if deed.action == "delivery.retried"
    ]
    entries += map(_attempt, attempts)
    for letter in letters:
        entries += _death(letter)
    entries += _standing(row)
    return sorted(entries, key=lambda entry: entry["at"])


def _entry(at: datetime, what: TimelineStep, cycle: int, reason: str | None = None) -> TimelineEntryView:
    return {
        "at": at,
        "what": what,
        "cycle": cycle,
        "reason": reason,
        "attempt_id": None,
        "number": None,
        "outcome": None,
        "status_code": None,
        "superseded": None,
        "dead_letter_id": None,
        "replay_id": None,
    }


def _beginnings(
    row: DeliveryRow, letters: Sequence[DeadLetterRow], by_hand: Sequence[Deed]
) -> Iterator[TimelineEntryView]:
    """When cycles began: the last one by the row, those before by the audit log, or the letters that were settled."""
    began: dict[int, datetime] = {}
    for letter in letters:
        if letter.state == "replayed" and letter.settled_at is not None:
            began[(letter.cycle or 0) + 1] = letter.settled_at
    for deed in by_hand:
        if deed.action == "delivery.replayed" and deed.after is not None:
            began.setdefault(deed.after["cycle"], deed.created_at)
    if row.cycle_began_at is not None:
        began[row.cycle] = row.cycle_began_at
    for cycle, at in began.items():
        by = row.replay_id if cycle == row.cycle else None
        replay_id = None if by is None else public_id(REPLAY, by)
        yield {**_entry(at, "cycle_began", cycle), "replay_id": replay_id}


def _attempt(row: AttemptRow) -> TimelineEntryView:
    return {
        **_entry(row.started_at, "attempt", row.cycle, row.reason),
        "attempt_id": public_id(ATTEMPT, row.id),
        "number": row.number,
        "outcome": cast(Literal["delivered", "retry", "dead"], row.outcome),
        "status_code": row.status_code,
        "superseded": row.superseded,
    }


def _death(letter: DeadLetterRow) -> Iterator[TimelineEntryView]:
    cycle, letter_id = letter.cycle or 0, public_id(DEAD_LETTER, letter.id)
    yield {**_entry(letter.created_at, "dead", cycle, letter.reason), "dead_letter_id": letter_id}
    if letter.state == "discarded" and letter.settled_at is not None:
        discarded = _entry(letter.settled_at, "discarded", cycle, letter.discard_reason)
        yield {**discarded, "dead_letter_id": letter_id}


def _standing(row: DeliveryRow) -> Iterator[TimelineEntryView]:
    """How it stands, beyond what its attempts and letters say."""
    if row.claimed_at is not None:
        yield _entry(row.claimed_at, "in_progress", row.cycle)
    match row.status:
        case Status.HELD:
            if row.claimed_at is None:
                yield _entry(row.updated_at, "held", row.cycle, row.reason)
        case Status.RETRYING:
            if row.next_attempt_at is not None:
                yield _entry(row.next_attempt_at, "retry_due", row.cycle)
        case Status.CANCELED:
            yield _entry(row.updated_at, "canceled", row.cycle, row.reason)
