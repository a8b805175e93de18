"""What a key of the API may do, by name. A key has a set of these; a route asks for one."""

from collections.abc import Set as AbstractSet
from enum import StrEnum


class Scope(StrEnum):
    """A permission. They are part of the API: added to, never renamed."""

    EVENTS_READ = "events:read"
    EVENTS_WRITE = "events:write"
    EVENTS_EXPUNGE = "events:expunge"  # destroys what an event said, for good
    EVENT_TYPES_READ = "event_types:read"
    EVENT_TYPES_WRITE = "event_types:write"  # the catalogue is of the installation, so only an admin key has use for it
    SUBSCRIPTIONS_READ = "subscriptions:read"
    SUBSCRIPTIONS_WRITE = "subscriptions:write"
    SECRETS_READ = "secrets:read"  # the secrets that sign, in the clear
    DELIVERIES_READ = "deliveries:read"
    DELIVERIES_WRITE = "deliveries:write"
    DEAD_LETTERS_READ = "dead_letters:read"
    DEAD_LETTERS_WRITE = "dead_letters:write"
    REPLAYS_READ = "replays:read"
    REPLAYS_WRITE = "replays:write"
    KEYS_ADMIN = "keys:admin"
    AUDIT_READ = "audit:read"


ALL_SCOPES = frozenset(Scope)
EVERY = "*"  # stored for a key that has them all, those of later releases too


def covers(own: AbstractSet[str], wanted: AbstractSet[str]) -> bool:
    """Whether a key with the stored scopes `own` may hand out the stored scopes `wanted`.

    Every one, those of later releases too, has only who has them all for good.
    """
    return EVERY in own or wanted <= own


def known(stored: AbstractSet[str]) -> AbstractSet[Scope]:
    """The stored scopes that this release knows; a later one may have stored more."""
    return ALL_SCOPES if EVERY in stored else frozenset(Scope(name) for name in stored if name in ALL_SCOPES)
