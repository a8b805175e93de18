"""The gate: may a delivery be attempted now, or does it join its endpoint's backlog?"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """Attempt it now."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Leave it in the store; `reason` is for a person."""

    reason: str


ATTEMPT = Attempt()
HELD = Hold("the endpoint has a backlog")
PACED = Hold("the endpoint has a rate limit: its backlog is fed at that pace")
ORDERED = Hold("the endpoint takes its deliveries in strict order: its backlog is fed one at a time")
FULL = Hold("the endpoint is at its cap")
RESTING = Hold("the endpoint asked by Retry-After to be left alone")


def decide(
    *,
    blocked: str | None,
    held: bool,
    paced: bool,
    ordered: bool,
    in_hand: int,
    free: int,
    cap: int | None = None,
) -> Attempt | Hold:
    """Decide for one delivery.

    `blocked` says why the subscription may not be delivered to at all (paused, undecryptable); `held` is the
    endpoint's mode; `paced` says that it has a rate limit, and `ordered` that its deliveries go one by one: only who
    holds its lease can keep either. `in_hand` counts its deliveries in this dispatcher, `free` the places left for
    everybody, and `cap` is what its own slowness leaves it (`core/cap.py`): None for its whole share, 0 while it rests.
    """
    if blocked is not None:
        return Hold(blocked)
    if held:
        return HELD
    if paced:
        return PACED
    if ordered:
        return ORDERED
    if cap == 0:
        return RESTING
    if room_left(in_hand=in_hand, free=free, cap=cap) <= 0:
        return FULL
    return ATTEMPT


def room_left(*, in_hand: int, free: int, cap: int | None) -> int:
    """How many more deliveries an endpoint may have in hand; less than none when its share or its cap has shrunk."""
    share = fair_share(free)
    return (share if cap is None else min(share, cap)) - in_hand


def fair_share(free: int) -> int:
    """How many deliveries one endpoint may have in hand while `free` places are left: a sixteenth of those.

    A dynamic threshold, as in shared-memory switches (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2),
    1998): nothing has to be measured or remembered, and what one endpoint may take shrinks as the others take more.
    Of the 4,000 places that are the default, an endpoint alone gets 235, and 90 that hang one after the other still
    leave places for those that are well.
    """
    return free // 16
