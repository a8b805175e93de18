"""How many of a limited backlog are claimed at a time. That limits hold: tests/e2e/test_rate_limits.py."""

import pytest
from uuid_utils.compat import uuid7

from dispatcher import paces as module
from dispatcher.core.pace import RateLimit
from dispatcher.core.request import Recipe
from dispatcher.index import Endpoint
from dispatcher.paces import Paces
from schemas.subscriptions import DEFAULT_POLICY

AHEAD_S = 0.5


def limited(per_s: float | None) -> Endpoint:
    limit = None if per_s is None else RateLimit(per_s, 1)
    return Endpoint(uuid7(), "default", "http://a.example/", (), 15, DEFAULT_POLICY, Recipe({}, ()), limit, False, None)


@pytest.mark.parametrize(
    ("per_s", "given_out_s", "in_hand", "waiting", "room"),
    [
        (50, 0.0, 0, 0, 26),  # the burst, and what comes within the time ahead
        (50, 0.0, 9, 9, 17),
        (50, 0.0, 14, 14, 0),  # less than half of it is not worth a claim
        (50, 0.3, 15, 0, 0),  # nor when the others have their turns already
        (50, 0.3, 0, 0, 11),  # but with nothing in hand any is
        (2, 0.0, 1, 1, 1),
        (2, 0.5, 1, 0, 1),
        (0.1, 0.0, 0, 0, 1),
    ],
)
def test_a_claim_is_for_half_of_the_time_ahead_at_least(
    monkeypatch: pytest.MonkeyPatch, per_s: float, given_out_s: float, in_hand: int, waiting: int, room: int
) -> None:
    monkeypatch.setattr(module, "boot_s", lambda: 1000.0)
    endpoint, paces = limited(per_s), Paces(ahead_s=AHEAD_S)
    paces.begin(endpoint.id, full_in_s=given_out_s)
    assert paces.room(endpoint, in_hand=in_hand, waiting=waiting) == room


def test_without_a_limit_there_is_no_pace_and_without_the_lease_no_room() -> None:
    endpoint = limited(50)
    assert Paces(ahead_s=AHEAD_S).room(endpoint, in_hand=0, waiting=0) == 0
    unlimited = Endpoint(
        uuid7(), "default", "http://a.example/", (), 15, DEFAULT_POLICY, Recipe({}, ()), None, False, None
    )
    assert Paces(ahead_s=AHEAD_S).room(unlimited, in_hand=0, waiting=0) is None
