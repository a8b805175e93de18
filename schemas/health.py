"""How a subscription's endpoint fares, in one word: a rule over what its row says, and over recent attempts if known.

- disabled: its state is.
- failing: its breaker is open, or its last `FAILING_STREAK` attempts failed, or fewer than half of the recent ones were
  delivered.
- degraded: its last attempt failed, or fewer than 95 % of the recent ones were delivered.
- healthy: else, also while nothing is sent to it.

Fewer than `MIN_ATTEMPTS` recent attempts say nothing. One that is paused is judged by what it did before.
"""

from enum import StrEnum
from typing import Final

from schemas.subscriptions import State

FAILING_STREAK: Final = 5
MIN_ATTEMPTS: Final = 20
FAILING_RATE: Final = 0.5
DEGRADED_RATE: Final = 0.95


class Health(StrEnum):
    """From best to worst."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FAILING = "failing"
    DISABLED = "disabled"


def judge_health(*, state: str, breaker_open: bool, failures: int, attempts: int = 0, delivered: int = 0) -> Health:
    """`failures` are those of the streak; `delivered` of `attempts` recent ones were."""
    if state == State.DISABLED:
        return Health.DISABLED
    rate = delivered / attempts if attempts >= MIN_ATTEMPTS else 1.0
    if breaker_open or failures >= FAILING_STREAK or rate < FAILING_RATE:
        return Health.FAILING
    if failures > 0 or rate < DEGRADED_RATE:
        return Health.DEGRADED
    return Health.HEALTHY
