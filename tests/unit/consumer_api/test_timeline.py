"""The timeline of a delivery: what its rows say, in order of time, and nothing else."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from consumer_api.timeline import timeline
from infra.store.audit import Deed
from infra.store.dead_letters import DeadLetterRow
from infra.store.deliveries import DeliveryRow
from infra.store.history import AttemptRow
from schemas.ids import REPLAY, public_id

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)
EVENT_KEY = UUID(int=int(BEGAN.timestamp() * 1000) << 80)
SOME = UUID(int=7)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def row(**given: Any) -> DeliveryRow:
    values: dict[str, Any] = dict.fromkeys(DeliveryRow.__dataclass_fields__)
    values |= {"id": EVENT_KEY, "event_id": EVENT_KEY, "cycle": 0, "status": "delivered", "updated_at": at(9)}
    return DeliveryRow(**values | given)


def attempt(started: float, cycle: int, number: int, outcome: str) -> AttemptRow:
    values: dict[str, Any] = dict.fromkeys(AttemptRow.__dataclass_fields__)
    values |= {"id": SOME, "delivery_id": SOME, "started_at": at(started), "cycle": cycle, "number": number}
    return AttemptRow(**values | {"outcome": outcome, "superseded": False})


def letter(died: float, cycle: int, state: str, settled: float | None = None) -> DeadLetterRow:
    values: dict[str, Any] = dict.fromkeys(DeadLetterRow.__dataclass_fields__)
    values |= {"id": SOME, "cycle": cycle, "reason": "gone", "state": state, "created_at": at(died)}
    return DeadLetterRow(**values | {"settled_at": None if settled is None else at(settled), "discard_reason": "moved"})


def told(
    row: DeliveryRow, attempts: Any, letters: Any, by_hand: Any = (), *, admitted: float | None = 1
) -> list[tuple[str, float, int]]:
    entries = timeline(row, attempts, letters, by_hand, admitted_at=None if admitted is None else at(admitted))
    return [(one["what"], (one["at"] - BEGAN).total_seconds(), one["cycle"]) for one in entries]


def test_a_delivery_that_was_delivered_at_the_second_attempt() -> None:
    attempts = [attempt(2, 0, 1, "retry"), attempt(8, 0, 2, "delivered")]
    assert told(row(), attempts, []) == [
        ("event_accepted", 0, 0),
        ("event_admitted", 1, 0),
        ("attempt", 2, 0),
        ("attempt", 8, 0),
    ]
    assert told(row(), [], [], admitted=None) == [("event_accepted", 0, 0)]


def test_each_cycle_begins_where_a_row_says_so() -> None:
    """Cycle 2 by the letter that its replay settled, 3 by the row, of which 1 has no trace."""
    letters = [letter(12, 2, "open"), letter(5, 1, "replayed", 6)]
    shown = row(cycle=3, cycle_began_at=at(15), replay_id=SOME)
    assert told(shown, [], letters)[2:] == [
        ("dead", 5, 1),
        ("cycle_began", 6, 2),
        ("dead", 12, 2),
        ("cycle_began", 15, 3),
    ]
    last = timeline(shown, [], letters, [], admitted_at=None)[-1]
    assert last["replay_id"] == public_id(REPLAY, SOME)


def test_the_last_cycle_is_begun_once_though_its_letter_tells_too() -> None:
    shown = row(cycle=1, cycle_began_at=at(6))
    assert [one[0] for one in told(shown, [], [letter(5, 0, "replayed", 6)])].count("cycle_began") == 1


def test_of_what_an_earlier_release_replayed_the_letter_tells() -> None:
    assert told(row(cycle=1), [], [letter(5, 0, "replayed", 6)])[-1] == ("cycle_began", 6, 1)


def test_what_was_done_by_hand_stands_in_the_audit_log() -> None:
    deeds = [Deed("delivery.retried", at(8), {"cycle": 1}), Deed("delivery.replayed", at(6), {"cycle": 1})]
    shown = row(cycle=2, cycle_began_at=at(9))
    expected = [("cycle_began", 6, 1), ("retried", 8, 1), ("cycle_began", 9, 2)]
    assert told(shown, [], [], deeds)[2:] == expected
    # Told twice, it is one: by the row, by the letter that it settled, and by the log.
    assert told(row(cycle=1, cycle_began_at=at(6)), [], [letter(5, 0, "replayed", 6)], deeds[1:])[2:] == [
        ("dead", 5, 0),
        ("cycle_began", 6, 1),
    ]


def test_how_it_stands() -> None:
    cases: list[tuple[dict[str, Any], list[tuple[str, float, int]]]] = [
        ({"status": "held", "reason": "paused"}, [("held", 9, 0)]),
        ({"status": "held", "claimed_at": at(10)}, [("in_progress", 10, 0)]),
        ({"status": "pending", "claimed_at": at(2)}, [("in_progress", 2, 0)]),
        ({"status": "retrying", "next_attempt_at": at(90)}, [("retry_due", 90, 0)]),
        ({"status": "canceled", "claimed_at": at(2)}, [("in_progress", 2, 0), ("canceled", 9, 0)]),
        ({"status": "delivered"}, []),
    ]
    for given, expected in cases:
        assert told(row(**given), [], [])[2:] == expected, given


def test_a_letter_that_was_discarded_says_why() -> None:
    entries = timeline(row(status="dead"), [], [letter(5, 0, "discarded", 7)], [], admitted_at=None)
    assert [(one["what"], one["reason"]) for one in entries[1:]] == [("dead", "gone"), ("discarded", "moved")]
