"""Why a change that somebody asked for was not made. Values, because both are expected."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no such row, or it was deleted."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The row is in a state that does not allow it; `reason` is a sentence for a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expunged(Refused):
    """There is nothing to do it with any more: the event was expunged."""
