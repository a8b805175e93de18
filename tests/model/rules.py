"""The rules of the protocol: the dispatcher's own pure functions, the twins of the statements, and four habits.

The steps ask nothing else. A rule can be replaced by a broken one, to see which invariant it holds up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dispatcher.core import conclude as concluding
from dispatcher.core import gate, liveness
from dispatcher.core import settle as settling
from dispatcher.core.conclude import Verdict
from dispatcher.core.liveness import Times
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from schemas.subscriptions import ListPolicy, RetryPolicy
from tests.model import statements as sql
from tests.model.state import Beat, Row, Subscription

TIMES: Final = Times(
    heartbeat_s=2,
    renewal_s=3,
    margin_s=1,
    liveness_s=12,
    wait_s=40,
    longest_deadline_s=60,
    settle_s=30,
    claim_cap_s=150,
)
DEADLINE_S: Final = TIMES.longest_deadline_s

# The greatest age that is still young, and the least that is not.
RENEWAL_AGE_S: Final[dict[Beat, float]] = {
    "fresh": TIMES.liveness_s - TIMES.margin_s - 0.001,
    "lapsed": TIMES.liveness_s,
    "cut": TIMES.liveness_s,
    "down": TIMES.liveness_s,
}
YOUNG_CLAIM_S: Final = TIMES.claim_cap_s - TIMES.margin_s - DEADLINE_S - TIMES.settle_s
OLD_CLAIM_S: Final = TIMES.claim_cap_s

THREE_ATTEMPTS: Final = ListPolicy(delays_s=(5, 5))
TWO_ATTEMPTS: Final = ListPolicy(delays_s=(5,))
ONE_ATTEMPT: Final = ListPolicy(delays_s=())
GROWING_OLD: Final = ListPolicy(delays_s=(5,), max_age_s=60)
RESULTS: Final[tuple[AttemptResult, ...]] = (
    Answered(200, b"", None, 1, None),
    NoAnswer(Failure.TIMEOUT, "timeout", 1, None),
)


@dataclass(frozen=True)
class Rules:
    """As they are. `replace(RULES, …)` breaks one."""

    policy: RetryPolicy = TWO_ATTEMPTS  # with a max_age_s, what waits may grow too old at any moment
    places: int = 3  # how much one dispatcher has in hand: at the bound it takes nothing

    # dispatcher.core
    decide: Callable[..., gate.Attempt | gate.Hold] = gate.decide
    is_fresh: Callable[..., bool] = liveness.is_fresh
    why_not_begin: Callable[..., str | None] = liveness.why_not_begin
    conclude: Callable[..., Verdict] = concluding.conclude
    is_awaiting_hint: Callable[..., bool] = settling.is_awaiting_hint
    settle: Callable[..., settling.Settled] = settling.settle

    # infra.store
    insert_deliveries: Callable[..., Row] = sql.insert_deliveries
    lease_endpoints: Callable[..., Subscription | None] = sql.lease_endpoints
    close_backlogs: Callable[..., Subscription | None] = sql.close_backlogs
    claim_due: Callable[..., Row | None] = sql.claim_due
    claim_held: Callable[..., Row | None] = sql.claim_held
    claim_in_order: Callable[..., Row | None] = sql.claim_in_order
    claims_of: Callable[..., bool] = sql.claims_of
    insert_dead_letters: Callable[..., tuple[int, ...]] = sql.insert_dead_letters
    may_judge: Callable[..., bool] = sql.may_judge
    free_dead_claims: Callable[..., Row | None] = sql.free_dead_claims
    free_dead_leases: Callable[..., Subscription | None] = sql.free_dead_leases
    hold_overdue: Callable[..., Row | None] = sql.hold_overdue
    end_orphaned: Callable[..., Row | None] = sql.end_orphaned
    open_with_backlog: Callable[..., bool] = sql.open_with_backlog
    replay: Callable[..., Row | None] = sql.replay
    retry_now: Callable[..., Row | None] = sql.retry_now
    cancel: Callable[..., Row | None] = sql.cancel
    end_unfinished: Callable[..., Row | None] = sql.end_unfinished

    # What no single function decides
    remembers_lapses: bool = True  # Heartbeat.lapsed_since
    keeps_outcomes: bool = True  # Settlement._settle tries again until an outcome is committed
    commits_before_hinting: bool = True  # Settlement._conclude comes after _commit
    closes_under_lock: bool = True  # LOCK_LEASES, then CLOSE_BACKLOGS


RULES: Final = Rules()
