"""The cap: how much an endpoint that is slow, or asks for less, may have in hand and under way.

By Little's law an endpoint fills places in proportion to how long its answers take. So what it may have in hand times
the seconds that an answer takes stays within a budget: half a second of each place of its fair share, whatever that is
now. An endpoint that answers sooner has its whole share, one that hangs has a few deliveries in the end, and a thousand
that hang leave room for the others. A POST under way counts by its age before anything is known of its end: when many
endpoints begin to hang at once, each is capped within seconds and not when its first POST times out.

429, 502, 503 and 504 halve what may be under way, once for all that was under way together; each success adds a part of
one (additive increase, multiplicative decrease, as TCP: Jacobson, SIGCOMM 1988). While their Retry-After runs, nothing
begins.

All of it is what one dispatcher sees: another one that sends to the same endpoint learns for itself.
"""

from dataclasses import dataclass, replace
from typing import Final

from dispatcher.core.breaker import Health, health
from schemas.deliveries import Answered, AttemptResult
from schemas.subscriptions import MAX_DELAY_S

QUICK_S: Final = 0.5  # an answer within this is as good as at once: the pipeline around a POST takes as long under load
SLOW_DOWN: Final = frozenset({429, 502, 503, 504})
_WEIGHT: Final = 1 / 4  # of the newest answer in the average: one that is late among many is soon forgotten
_AHEAD: Final = 4  # deliveries in hand for each POST that may be under way, so that one claim brings several


@dataclass(frozen=True, slots=True)
class Slow:
    """What is known of an endpoint. Times are in seconds on one clock.

    `answer_s` is how long an answer took, as a moving average; `at_once` how many POSTs may be under way, None for as
    many as everybody; `slowed_s` when that was last halved, `rests_until_s` when its Retry-After is over.
    """

    answer_s: float = 0.0
    at_once: float | None = None
    slowed_s: float = float("-inf")
    rests_until_s: float = float("-inf")

    def is_worth_keeping(self, *, now_s: float) -> bool:
        """Whether it differs from an endpoint of which nothing is known."""
        return self.answer_s > QUICK_S or self.at_once is not None or self.rests_until_s > now_s


NOT_SLOW: Final = Slow()


def observe(slow: Slow, result: AttemptResult, *, most_at_once: int, asked_s: float | None, now_s: float) -> Slow:
    """What is known after an attempt that ended at `now_s`.

    `most_at_once` POSTs may be under way to any endpoint; `asked_s` is the answer's Retry-After in seconds, of which at
    most 24 h are honoured.
    """
    said = health(result)
    if said is Health.UNKNOWN:
        return slow
    took_s = result.duration_ms / 1000
    slow = replace(slow, answer_s=slow.answer_s + _WEIGHT * (took_s - slow.answer_s))
    began_s = now_s - took_s
    if isinstance(result, Answered) and result.status in SLOW_DOWN:
        rest_s = min(max(asked_s or 0.0, 0.0), MAX_DELAY_S)
        slow = replace(slow, rests_until_s=max(slow.rests_until_s, now_s + rest_s))
        if began_s < slow.slowed_s:
            return slow  # it was under way when another one said so
        return replace(slow, at_once=max(1.0, (slow.at_once or most_at_once) / 2), slowed_s=now_s)
    if said is Health.WELL and slow.at_once is not None and began_s >= slow.slowed_s:
        more = slow.at_once + 1 / slow.at_once
        return replace(slow, at_once=None if more >= most_at_once else more)
    return slow


def cap(slow: Slow, *, oldest_s: float, share: int, now_s: float) -> int | None:
    """How many deliveries may be in hand; None for its whole `share`, and 0 only while a Retry-After runs.

    `oldest_s` is the age of the oldest POST under way, 0 without one.
    """
    if now_s < slow.rests_until_s:
        return 0
    seconds = max(slow.answer_s, oldest_s)
    by_time = None if seconds <= QUICK_S else max(1, int(share * QUICK_S / seconds))
    if slow.at_once is None:
        return by_time
    by_asking = _AHEAD * int(slow.at_once)
    return by_asking if by_time is None else min(by_time, by_asking)
