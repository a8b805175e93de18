"""The ladder's promise about any delay."""

from hypothesis import given
from hypothesis import strategies as st

from infra.broker.ladder import RUNGS_MS, rung_ms

DAY_S = 86_400


@given(st.floats(min_value=0, max_value=DAY_S))
def test_a_rung_is_never_shorter_and_at_most_19_percent_longer(delay_s: float) -> None:
    rung_s = rung_ms(delay_s) / 1000
    assert delay_s <= rung_s <= max(1.0, 1.19 * delay_s)


def test_every_rung_is_its_own_delays_rung() -> None:
    assert [rung_ms(ms / 1000) for ms in RUNGS_MS] == list(RUNGS_MS)
    assert len(set(RUNGS_MS)) == 67
    assert RUNGS_MS[-1] >= 1000 * DAY_S


def test_beyond_the_ladder_is_its_last_rung() -> None:
    assert rung_ms(10 * DAY_S) == RUNGS_MS[-1]
