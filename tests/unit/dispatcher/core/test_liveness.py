"""The times that the protocol stands on."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.liveness import Times, contradictions, is_fresh, why_not_begin
from infra.settings import Settings

TIMES = Times(
    heartbeat_s=2,
    renewal_s=3,
    margin_s=1,
    liveness_s=12,
    wait_s=30,
    longest_deadline_s=60,
    settle_s=30,
    claim_cap_s=150,
)


def test_the_defaults_agree_with_each_other() -> None:
    fields = Settings.model_fields
    assert (
        Times(
            heartbeat_s=fields["heartbeat_s"].default,
            renewal_s=fields["renewal_timeout_s"].default,
            margin_s=fields["begin_margin_s"].default,
            liveness_s=fields["liveness_s"].default,
            wait_s=fields["max_wait_in_hand_s"].default,
            longest_deadline_s=60,
            settle_s=fields["settle_allowance_s"].default,
            claim_cap_s=fields["claim_cap_s"].default,
        )
        == TIMES
    )
    assert not contradictions(TIMES)


@pytest.mark.parametrize(
    ("times", "setting", "least"),
    [
        (replace(TIMES, liveness_s=9.9), "HOOKHARE_LIVENESS_S", "10"),
        (replace(TIMES, claim_cap_s=120.9), "HOOKHARE_CLAIM_CAP_S", "121"),
    ],
)
def test_a_contradiction_names_the_setting_and_what_would_be_right(times: Times, setting: str, least: str) -> None:
    (problem,) = contradictions(times)
    assert problem.field == setting
    assert f"at least {least}:" in problem.message


@pytest.mark.parametrize(
    ("renewal_age_s", "claim_age_s", "deadline_s", "may"),
    [
        (0.1, 0.1, 15, True),
        (10.9, 0.1, 15, True),
        (11.0, 0.1, 15, False),
        (0.1, 104.0, 15, True),
        (0.1, 104.1, 15, False),
        (0.1, 59.0, 60, True),
        (0.1, 59.1, 60, False),
    ],
)
def test_a_post_begins_only_while_both_are_young(
    renewal_age_s: float, claim_age_s: float, deadline_s: float, may: bool
) -> None:
    why = why_not_begin(TIMES, renewal_age_s=renewal_age_s, claim_age_s=claim_age_s, deadline_s=deadline_s)
    assert (why is None) == may


@given(st.floats(0, 100), st.floats(0, 200), st.floats(1, 60))
def test_who_begins_is_alive_until_the_request_is_sent_and_settles_within_the_cap(
    renewal_age_s: float, claim_age_s: float, deadline_s: float
) -> None:
    if why_not_begin(TIMES, renewal_age_s=renewal_age_s, claim_age_s=claim_age_s, deadline_s=deadline_s) is None:
        assert is_fresh(TIMES, renewal_age_s=renewal_age_s)
        assert renewal_age_s + TIMES.margin_s < TIMES.liveness_s
        assert claim_age_s + TIMES.margin_s + deadline_s + TIMES.settle_s <= TIMES.claim_cap_s + 1e-9
