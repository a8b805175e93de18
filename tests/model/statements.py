"""Twins: what the database decides, each statement as a pure function with the statement's name and conditions.

`None` stands for "this row is not touched". `test_statements.py` runs every twin and its statement over the same rows.
"""

from collections.abc import Iterable, Mapping

from schemas.deliveries import ENDED, UNFINISHED, Status
from tests.model.state import Row, Subscription

# --- Admission, an endpoint's mode ---------------------------------------------------------------------------------


def insert_deliveries(*, hold: bool, me: int) -> Row:
    return Row(Status.HELD) if hold else Row(Status.PENDING, fence=1, claimed_by=me)


def hold_endpoints(subscription: Subscription) -> Subscription:
    return subscription._replace(mode="held")


def lease_endpoints(subscription: Subscription, *, me: int, fresh: bool) -> Subscription | None:
    if fresh and subscription.mode == "held" and subscription.feeder is None:
        return subscription._replace(feeder=me)
    return None


def close_backlogs(subscription: Subscription, rows: Iterable[Row], *, me: int) -> Subscription | None:
    """After LOCK_LEASES, so that no row is held between the look and the opening."""
    if subscription.feeder == me and not any(row.status is Status.HELD for row in rows):
        return subscription._replace(mode="open", feeder=None)
    return None


# --- Claims --------------------------------------------------------------------------------------------------------


def claim_due(row: Row, *, cycle: int, attempt: int, me: int, fresh: bool) -> Row | None:
    if (
        fresh
        and row.status is Status.RETRYING
        and row.cycle == cycle
        and row.attempts == attempt - 1
        and row.claimed_by is None
    ):
        return claim(row, me)
    return None


def claim_held(row: Row, subscription: Subscription, *, me: int, fresh: bool) -> Row | None:
    if fresh and subscription.feeder == me and row.status is Status.HELD and row.claimed_by is None:
        return claim(row, me)._replace(status=Status.PENDING)
    return None


def claim_in_order(
    rows: Mapping[int, Row], subscription: Subscription, *, number: int, me: int, fresh: bool
) -> Row | None:
    """Row `number` of those of a subscription, which are numbered by their ordinals. After LOCK_LEASES."""
    unfinished = [one for one, row in rows.items() if row.status in UNFINISHED]
    lowest = min(unfinished, key=lambda one: (rows[one].cycle > 0, one), default=None)
    if number != lowest or any(row.claimed_by is not None for row in rows.values()):
        return None
    return claim_held(rows[number], subscription, me=me, fresh=fresh)


def claim(row: Row, me: int) -> Row:
    return row._replace(claimed_by=me, fence=row.fence + 1, old=False)


def claims_of(row: Row, *, me: int) -> bool:
    """Whether the row is claimed by me. Who asks knows what it has in hand."""
    return row.claimed_by == me


# --- Settlement (the rest of it is `dispatcher.core.settle`) -------------------------------------------------------


def insert_dead_letters(row: Row, letters: tuple[int, ...]) -> tuple[int, ...]:
    """One for each (delivery, cycle). `letters` counts them, by cycle."""
    if row.status is not Status.DEAD or letters[row.cycle]:
        return letters
    return (*letters[: row.cycle], 1, *letters[row.cycle + 1 :])


# --- Reconciler ----------------------------------------------------------------------------------------------------


def may_judge(*, fresh: bool, steady: bool) -> bool:
    return fresh and steady


def free_dead_claims(row: Row, *, owner_alive: bool) -> Row | None:
    if row.claimed_by is None or (owner_alive and not row.old):
        return None
    status = Status.HELD if row.status in (Status.PENDING, Status.RETRYING) else row.status
    return row._replace(status=status, claimed_by=None, old=False)


def free_dead_leases(subscription: Subscription, *, feeder_alive: bool) -> Subscription | None:
    if subscription.mode == "held" and subscription.feeder is not None and not feeder_alive:
        return subscription._replace(feeder=None)
    return None


def hold_overdue(row: Row, *, overdue: bool) -> Row | None:
    if overdue and row.status is Status.RETRYING and row.claimed_by is None:
        return row._replace(status=Status.HELD)
    return None


def end_orphaned(row: Row, subscription: Subscription) -> Row | None:
    if row.status not in (Status.HELD, Status.RETRYING):
        return None
    match subscription.state:
        case "disabled":
            return row._replace(status=Status.DEAD)
        case "deleted":
            return row._replace(status=Status.CANCELED)
    return None


def open_with_backlog(subscription: Subscription, rows: Iterable[Row]) -> bool:
    return (
        subscription.mode == "open"
        and subscription.state != "deleted"
        and any(row.status is Status.HELD for row in rows)
    )


# --- Operators -----------------------------------------------------------------------------------------------------


def replay(row: Row, subscription: Subscription) -> Row | None:
    if row.status in ENDED and subscription.state == "enabled":
        return row._replace(status=Status.HELD, cycle=row.cycle + 1, attempts=0)
    return None


def retry_now(row: Row, subscription: Subscription) -> Row | None:
    if row.status in UNFINISHED and row.claimed_by is None and subscription.state not in ("disabled", "deleted"):
        return row._replace(status=Status.HELD)
    return None


def cancel(row: Row) -> Row | None:
    return row._replace(status=Status.CANCELED) if row.status in UNFINISHED else None


def end_unfinished(row: Row, status: Status) -> Row | None:
    """Of a subscription that is disabled or deleted, in the same transaction."""
    return row._replace(status=status) if row.status in UNFINISHED else None
