"""Every error that Hookhare raises on purpose.

    HookhareError
    ├── InvalidInput            the caller's input; names each field and what would be right
    ├── ConfigurationError      a setting; names it
    ├── SecretUnreadable        a stored secret that no configured key decrypts
    ├── InvalidSignature        a webhook that the given key did not sign, or not now
    ├── BrokerError
    │   ├── BrokerUnavailable   no connection, or it went away before the confirm
    │   ├── PublishRefused      the broker said no (nack), or blocks publishers (alarm)
    │   ├── PublishTimeout      no confirm in time: the message may or may not be stored
    │   └── Unroutable          no queue is bound for it
    └── StoreError
        ├── StoreUnavailable    no connection, a timeout, or a conflict that a retry may resolve
        └── SchemaMismatch      the database's schema is older or newer than this code

Expected outcomes (an answer of 500, an unreadable event, a claim that somebody else holds) are
values, not errors. Adapters translate third-party exceptions at their border, `raise … from`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class HookhareError(Exception):
    """The root of every error raised on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input: the field's path and what would be right."""

    field: str
    message: str


class InvalidInput(HookhareError, ValueError):
    """Input that breaks a rule. `problems` names every field at fault; `str()` joins them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = tuple(problems)

    @classmethod
    def of(cls, field: str, message: str) -> "InvalidInput":
        return cls([Problem(field, message)])


class ConfigurationError(HookhareError):
    """A setting is missing or contradicts another; the message names it and what would be right."""


class SecretUnreadable(HookhareError):
    """A stored secret that none of the configured encryption keys decrypts."""


class InvalidSignature(HookhareError):
    """A webhook's headers are missing or malformed, its time is too far off, or no signature matches."""


class BrokerError(HookhareError):
    """The broker did not do what was asked."""


class BrokerUnavailable(BrokerError):
    """There is no connection to the broker, or it was lost before the confirm."""


class PublishRefused(BrokerError):
    """The broker refused the message, or blocks publishers because of an alarm.

    `unfit`: because of what the message is, so it would be refused again.
    """

    def __init__(self, text: str, *, unfit: bool = False) -> None:
        super().__init__(text)
        self.unfit = unfit


class PublishTimeout(BrokerError):
    """No confirm came in time. The message may have been stored: publish it again with the same id."""


class Unroutable(BrokerError):
    """No queue is bound for the message; nothing was stored."""


class StoreError(HookhareError):
    """The database did not do what was asked."""


class StoreUnavailable(StoreError):
    """No connection, a timeout, or a conflict with another transaction: the same call may pass later.

    Whether a transaction that was being committed took effect is not known.
    """


class SchemaMismatch(StoreError):
    """The database's schema is not the one that this code was written for."""
