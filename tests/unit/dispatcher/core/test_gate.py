"""The gate, as a truth table, and the fair share as a property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.gate import ATTEMPT, FULL, HELD, ORDERED, PACED, RESTING, Attempt, Hold, decide
from infra.settings import Settings


@pytest.mark.parametrize(
    ("blocked", "held", "paced", "ordered", "in_hand", "free", "decision"),
    [
        (None, False, False, False, 0, 100, ATTEMPT),
        (None, False, False, False, 5, 100, ATTEMPT),
        (None, False, False, False, 6, 100, FULL),
        (None, False, False, False, 0, 15, FULL),
        (None, True, False, False, 0, 100, HELD),
        (None, False, True, False, 0, 100, PACED),
        (None, True, True, False, 0, 100, HELD),
        (None, False, False, True, 0, 100, ORDERED),
        (None, False, True, True, 0, 100, PACED),
        (None, True, False, True, 0, 100, HELD),
        ("paused", False, True, False, 0, 100, Hold("paused")),
        ("paused", False, False, True, 0, 100, Hold("paused")),
        ("paused", False, False, False, 0, 100, Hold("paused")),
        ("paused", True, False, False, 99, 0, Hold("paused")),
    ],
)
def test_decide(
    blocked: str | None, held: bool, paced: bool, ordered: bool, in_hand: int, free: int, decision: Attempt | Hold
) -> None:
    given = {"blocked": blocked, "held": held, "paced": paced, "ordered": ordered, "in_hand": in_hand, "free": free}
    assert decide(**given) == decision  # type: ignore[arg-type]


def attempts(*, in_hand: int, free: int) -> bool:
    """Whether nothing but places decides, and there is one."""
    return decide(blocked=None, held=False, paced=False, ordered=False, in_hand=in_hand, free=free) == ATTEMPT


@pytest.mark.parametrize(
    ("cap", "in_hand", "free", "decision"),
    [
        (6, 5, 1600, ATTEMPT),
        (6, 6, 1600, FULL),
        (1, 0, 16, ATTEMPT),
        (1, 0, 15, FULL),  # the places are everybody's bound, whatever the cap
        (500, 6, 100, FULL),
        (0, 0, 1600, RESTING),
    ],
)
def test_the_cap_of_a_slow_endpoint(cap: int, in_hand: int, free: int, decision: Attempt | Hold) -> None:
    given = {"blocked": None, "held": False, "paced": False, "ordered": False}
    assert decide(**given, in_hand=in_hand, free=free, cap=cap) == decision  # type: ignore[arg-type]


def fill(places: int, endpoints: int) -> list[int]:
    """What each of so many hanging endpoints has in hand when they take what they can, one after the other."""
    in_hand: list[int] = []
    for _ in range(endpoints):
        mine = 0
        while attempts(in_hand=mine, free=places - sum(in_hand) - mine):
            mine += 1
        in_hand.append(mine)
    return in_hand


@given(places=st.integers(1, 10_000), endpoints=st.integers(1, 100))
def test_no_more_is_taken_than_there_is_and_nobody_gets_more_than_who_came_before(places: int, endpoints: int) -> None:
    in_hand = fill(places, endpoints)
    assert sum(in_hand) <= places
    assert in_hand == sorted(in_hand, reverse=True)


def test_an_endpoint_alone_gets_a_seventeenth_and_ninety_that_hang_leave_room() -> None:
    places = Settings.model_fields["max_in_hand"].default
    assert fill(places, 1) == [235]
    assert fill(places, 91)[-1] > 0
