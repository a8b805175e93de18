"""When a failed delivery is tried again."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, assert_never

from schemas.subscriptions import MAX_DELAY_S, ExponentialPolicy, ListPolicy, RetryPolicy

JITTER: Final = 0.1  # of the policy's delay, at most, added so that what failed together does not come back together

_SECONDS: Final = re.compile(r"[0-9]{1,18}")
_MAX_HEADER_CHARS: Final = 100


def next_delay_s(policy: RetryPolicy, *, attempt: int, retry_after_s: float | None, jitter: float) -> float | None:
    """Seconds from attempt number `attempt` (from 1), just made, to the next; None when the attempts are used up.

    The policy's delay and up to a tenth of it by `jitter`, which is in [0, 1). Never less than the endpoint asked for
    by Retry-After, of which at most 24 h are honoured.
    """
    base_s = _base_delay_s(policy, attempt)
    if base_s is None:
        return None
    asked_s = min(max(retry_after_s or 0.0, 0.0), MAX_DELAY_S)
    return max(base_s * (1 + JITTER * jitter), asked_s)


def _base_delay_s(policy: RetryPolicy, attempt: int) -> float | None:
    match policy:
        case ListPolicy():
            return policy.delays_s[attempt - 1] if attempt <= len(policy.delays_s) else None
        case ExponentialPolicy():
            if attempt >= policy.max_attempts:
                return None
            # At most 100.0 ** 48: far from overflow.
            return min(policy.initial_delay_s * policy.multiplier ** (attempt - 1), policy.max_delay_s)
        case _:
            assert_never(policy)


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110 section 10.2.3): a number of seconds, or an HTTP date.

    0 for a date that has passed; None for no header, and for one that is neither.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if not text or len(text) > _MAX_HEADER_CHARS:
        return None
    try:
        moment = parsedate_to_datetime(text)
        # A date without a zone, as of asctime, is in UTC too: section 5.6.7.
        return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds())
    except (ValueError, OverflowError):  # OverflowError: a number in it that no C integer holds
        return None
