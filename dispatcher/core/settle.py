"""What a verdict does to its delivery's row: the settlement rules of the protocol, as a pure function.

A verdict applies if the fence and the cycle are those that were claimed and the row has not ended. A matching fence
always frees the claim. Who lost the fence changes nothing, except that its success still counts while the cycle is the
same and the row has not ended. Settling the same verdict again changes nothing.
"""

from typing import assert_never

import msgspec
from msgspec.structs import replace

from dispatcher.core.conclude import Canceled, Dead, Delivered, Expired, Held, RetryIn, Verdict
from schemas.deliveries import UNFINISHED, Status


class Row(msgspec.Struct, frozen=True):
    """The part of a delivery's row that the rules read and write. `claimed`: somebody holds a claim."""

    status: Status
    cycle: int
    attempts: int
    fence: int
    claimed: bool
    reason: str | None = None
    delay_s: float | None = None  # of the retry just decided; None otherwise


class Claimed(msgspec.Struct, frozen=True):
    """What its holder knows of a claim: `attempt` is the number of the attempt that it allows."""

    cycle: int
    attempt: int
    fence: int


class Settled(msgspec.Struct, frozen=True):
    """`row` is how the row stands now. `superseded`: the verdict came too late to count."""

    row: Row
    superseded: bool


def settle(row: Row, claim: Claimed, verdict: Verdict) -> Settled:
    """Apply one verdict to the row as it is, read under its lock."""
    owner = row.fence == claim.fence
    current = row.cycle == claim.cycle and row.status in UNFINISHED and row.attempts == claim.attempt - 1
    freed = replace(row, claimed=False) if owner else row
    if owner and current:
        return Settled(_applied(freed, claim, verdict), superseded=False)
    late_success = isinstance(verdict, Delivered) and row.cycle == claim.cycle and row.status in UNFINISHED
    if late_success:
        return Settled(_applied(freed, claim, verdict), superseded=False)
    return Settled(freed, superseded=True)


def is_awaiting_hint(row: Row, claim: Claimed) -> bool:
    """Whether the row waits for the attempt after `claim`'s: its hint is to be published, be it for the second time.

    Not by who lost the fence: the retry is then another's decision, and so is its time. A hint of ours could come
    before that, and undercut what the endpoint asked for by Retry-After.
    """
    waits = row.status is Status.RETRYING and row.cycle == claim.cycle and row.attempts == claim.attempt
    return waits and row.fence == claim.fence


def _applied(row: Row, claim: Claimed, verdict: Verdict) -> Row:
    match verdict:
        case Delivered():
            attempts = max(row.attempts, claim.attempt)
            return replace(row, status=Status.DELIVERED, attempts=attempts, reason=None, delay_s=None)
        case RetryIn(delay_s, reason):
            return replace(row, status=Status.RETRYING, attempts=claim.attempt, reason=reason, delay_s=delay_s)
        case Dead(reason):
            return replace(row, status=Status.DEAD, attempts=claim.attempt, reason=reason, delay_s=None)
        case Expired(reason):
            return replace(row, status=Status.DEAD, reason=reason, delay_s=None)
        case Canceled(reason):
            return replace(row, status=Status.CANCELED, reason=reason, delay_s=None)
        case Held(reason):
            return replace(row, status=Status.HELD, reason=reason, delay_s=None)
        case _:
            assert_never(verdict)
