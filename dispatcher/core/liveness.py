"""When a dispatcher may believe itself, and when others may believe it dead.

The names follow DESIGN: heartbeat period H, renewal R, margin m from the check to the request being sent, liveness L,
waiting in hand Q, deadline D, settlement S, claim cap C. With 3H + R + m <= L, one missed heartbeat is survived and
a dispatcher stops beginning POSTs before anybody takes it for dead; with C >= Q + m + D + S, a claim outlives
everything that its owner may do under it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.errors import Problem


@dataclass(frozen=True, slots=True)
class Times:
    """All in seconds."""

    heartbeat_s: float
    renewal_s: float
    margin_s: float
    liveness_s: float
    wait_s: float
    longest_deadline_s: float
    settle_s: float
    claim_cap_s: float


def contradictions(times: Times) -> Sequence[Problem]:
    """What is wrong with these times, by the names of the settings they come from."""
    problems = []
    least_liveness = 3 * times.heartbeat_s + times.renewal_s + times.margin_s
    if times.liveness_s < least_liveness:
        problems.append(
            Problem(
                "HOOKHARE_LIVENESS_S",
                f"must be at least {least_liveness:g}: three heartbeats, a renewal and the begin margin",
            )
        )
    least_cap = times.wait_s + times.margin_s + times.longest_deadline_s + times.settle_s
    if times.claim_cap_s < least_cap:
        problems.append(
            Problem(
                "HOOKHARE_CLAIM_CAP_S",
                f"must be at least {least_cap:g}: the wait in hand, the begin margin, "
                f"the longest timeout of a subscription and the settle allowance",
            )
        )
    return problems


def is_fresh(times: Times, *, renewal_age_s: float) -> bool:
    """Whether nobody can take us for dead before a request that is checked now has been sent."""
    return renewal_age_s + times.margin_s < times.liveness_s


def why_not_begin(times: Times, *, renewal_age_s: float, claim_age_s: float, deadline_s: float) -> str | None:
    """Why a POST must not begin now; None when it may.

    Ages are counted from before the statement that renewed or claimed was sent.
    """
    if not is_fresh(times, renewal_age_s=renewal_age_s):
        return "the dispatcher's heartbeat lapsed"
    if claim_age_s + times.margin_s + deadline_s + times.settle_s > times.claim_cap_s:
        return "the claim waited too long in hand"
    return None
