"""What a tenant's key may hand on: nothing that it has not itself. Pure.

Whoever could make, change or rotate a key so that it may more, lasts longer or is answered more often than its own,
could raise itself. An admin key is the installation's, and makes any.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from schemas.scopes import covers


@dataclass(frozen=True, slots=True)
class Rights:
    """What a key may do, until when (None: without end), and how often a minute."""

    scopes: Collection[str]  # as stored
    expires_at: datetime | None
    rate_per_min: int


def beyond(own: Rights, wanted: Rights) -> str | None:
    """Why `wanted` is more than who has `own` may hand on, or None when it is not."""
    if not covers(frozenset(own.scopes), frozenset(wanted.scopes)):
        more = ", ".join(sorted(frozenset(wanted.scopes) - frozenset(own.scopes)))
        return f"scopes: your key does not have {more} itself"
    if own.expires_at is not None and (wanted.expires_at is None or wanted.expires_at > own.expires_at):
        return f"expires_at: must not be later than {own.expires_at.isoformat()}, when your key itself ends"
    if wanted.rate_per_min > own.rate_per_min:
        return f"rate_limit: must be at most {own.rate_per_min} requests a minute, which is your key's own limit"
    return None
