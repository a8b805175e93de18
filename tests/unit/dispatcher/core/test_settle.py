"""The settlement rules, as a truth table and as properties over every row and every claim."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatcher.core.conclude import Canceled, Dead, Delivered, Expired, Held, RetryIn, Verdict
from dispatcher.core.settle import Claimed, Row, is_awaiting_hint, settle
from schemas.deliveries import ENDED, UNFINISHED, Status

CLAIM = Claimed(cycle=0, attempt=2, fence=5)
RETRY = RetryIn(60.0, "the endpoint answered 500")
DEAD = Dead("attempts used up")
HELD = Held("the endpoint is at its cap")
EXPIRED = Expired("expired: older than its policy's max_age_s of 60 s")
CANCELED = Canceled("its event was expunged")

rows = st.builds(
    Row,
    status=st.sampled_from(Status),
    cycle=st.integers(0, 2),
    attempts=st.integers(0, 3),
    fence=st.integers(0, 3),
    claimed=st.booleans(),
)
claims = st.builds(Claimed, cycle=st.integers(0, 2), attempt=st.integers(1, 4), fence=st.integers(0, 3))
verdicts: st.SearchStrategy[Verdict] = st.sampled_from([Delivered(), RETRY, DEAD, HELD, EXPIRED, CANCELED])


def row(status: Status = Status.RETRYING, *, cycle: int = 0, attempts: int = 1, fence: int = 5) -> Row:
    return Row(status, cycle, attempts, fence, claimed=True)


@pytest.mark.parametrize(
    ("verdict", "status", "attempts"),
    [
        (Delivered(), Status.DELIVERED, 2),
        (RETRY, Status.RETRYING, 2),
        (DEAD, Status.DEAD, 2),
        (HELD, Status.HELD, 1),  # no attempt was made
        (EXPIRED, Status.DEAD, 1),  # nor here
        (CANCELED, Status.CANCELED, 1),
    ],
)
@pytest.mark.parametrize("before", sorted(UNFINISHED))
def test_the_owner_of_the_fence_settles(before: Status, verdict: Verdict, status: Status, attempts: int) -> None:
    settled = settle(row(before), CLAIM, verdict)
    assert (settled.row.status, settled.row.attempts) == (status, attempts)
    assert not settled.row.claimed
    assert not settled.superseded


@pytest.mark.parametrize("verdict", [Delivered(), RETRY, DEAD, HELD, EXPIRED, CANCELED])
@pytest.mark.parametrize("before", sorted(ENDED))
def test_an_ended_row_keeps_its_end_and_loses_the_claim(before: Status, verdict: Verdict) -> None:
    settled = settle(row(before), CLAIM, verdict)
    assert settled.superseded
    assert settled.row.status == before
    assert not settled.row.claimed


@pytest.mark.parametrize("verdict", [RETRY, DEAD, HELD, EXPIRED, CANCELED])
def test_who_lost_the_fence_changes_nothing(verdict: Verdict) -> None:
    before = row(fence=6)
    settled = settle(before, CLAIM, verdict)
    assert settled.superseded
    assert settled.row == before


def test_the_success_of_who_lost_the_fence_still_counts_and_leaves_the_new_claim() -> None:
    settled = settle(row(Status.HELD, fence=6), CLAIM, Delivered())
    assert not settled.superseded
    assert settled.row.status is Status.DELIVERED
    assert settled.row.claimed


@pytest.mark.parametrize("verdict", [Delivered(), RETRY, DEAD, HELD, EXPIRED, CANCELED])
def test_a_replay_under_way_is_not_settled_by_the_old_cycle(verdict: Verdict) -> None:
    settled = settle(row(Status.HELD, cycle=1, attempts=0), CLAIM, verdict)
    assert settled.superseded
    assert settled.row.status is Status.HELD
    assert not settled.row.claimed  # a matching fence always frees the claim


@given(rows, claims, verdicts)
def test_settling_again_changes_nothing(before: Row, claim: Claimed, verdict: Verdict) -> None:
    once = settle(before, claim, verdict).row
    assert settle(once, claim, verdict).row in (once, settle(before, claim, verdict).row)
    if before.fence == claim.fence and not isinstance(verdict, Held):
        assert settle(once, claim, verdict).row == once


def test_settling_again_does_not_undo_what_an_operator_did_meanwhile() -> None:
    """The answer to the first commit was lost, and the delivery is to be retried at once."""
    once = settle(row(), CLAIM, RETRY).row
    by_hand = replace(once, status=Status.HELD, reason=None, delay_s=None)
    again = settle(by_hand, CLAIM, RETRY)
    assert (again.row, again.superseded) == (by_hand, True)


@given(rows, claims, verdicts)
def test_no_verdict_ends_an_end_or_moves_a_cycle_or_a_fence(before: Row, claim: Claimed, verdict: Verdict) -> None:
    after = settle(before, claim, verdict).row
    assert (after.cycle, after.fence) == (before.cycle, before.fence)
    if before.status in ENDED:
        assert after.status == before.status
        assert after.attempts == before.attempts


@given(rows, claims, verdicts)
def test_only_a_matching_fence_frees_a_claim(before: Row, claim: Claimed, verdict: Verdict) -> None:
    after = settle(before, claim, verdict).row
    assert after.claimed == (before.claimed and before.fence != claim.fence)


def test_a_retry_awaits_its_hint_also_when_it_is_settled_twice() -> None:
    once = settle(row(), CLAIM, RETRY).row
    assert is_awaiting_hint(once, CLAIM)
    assert is_awaiting_hint(settle(once, CLAIM, RETRY).row, CLAIM)


@given(rows, claims)
def test_nothing_else_awaits_that_hint(before: Row, claim: Claimed) -> None:
    if is_awaiting_hint(before, claim):
        assert (before.status, before.cycle, before.attempts) == (Status.RETRYING, claim.cycle, claim.attempt)
        assert before.fence == claim.fence
