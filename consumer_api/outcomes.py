"""From what the store says to what HTTP says."""

from typing import TypeVar

from consumer_api.errors import conflict, expunged, not_found
from infra.store.outcomes import Expunged, Missing, Refused

Row = TypeVar("Row")


def done(outcome: Row | Missing | Refused, what: str) -> Row:
    """The row, or 404 naming `what` there is none of, or 409 with the reason."""
    if isinstance(outcome, Missing):
        raise not_found(what)
    if isinstance(outcome, Expunged):
        raise expunged(outcome.reason)
    if isinstance(outcome, Refused):
        raise conflict(outcome.reason)
    return outcome
