"""The caps of endpoints that are slow or asked for less, as far as this dispatcher has seen them.

Nothing is stored and nothing is shared: what has been learned is known to one process, for some minutes. An endpoint
that is well and idle costs nothing, one with POSTs under way their times.
"""

from dataclasses import dataclass
from uuid import UUID

import structlog

from dispatcher.clock import boot_s, wall
from dispatcher.core.cap import NOT_SLOW, QUICK_S, SLOW_DOWN, Slow, cap, observe
from dispatcher.core.retry import parse_retry_after
from schemas.deliveries import Answered, AttemptResult
from schemas.ids import SUBSCRIPTION, public_id

log = structlog.get_logger(__name__)

_REMEMBERED_S = 600.0  # since its last attempt


@dataclass(frozen=True, slots=True)
class _Known:
    slow: Slow
    url: str
    seen_s: float


class Caps:
    """What is known of each endpoint; `most_at_once` POSTs may be under way to any."""

    def __init__(self, *, most_at_once: int) -> None:
        self._most_at_once = most_at_once
        self._known: dict[UUID, _Known] = {}
        self._under_way: dict[UUID, dict[UUID, float]] = {}  # when they began, the oldest first
        self._prune_at_s = 0.0

    def __len__(self) -> int:
        """How many endpoints it keeps anything of."""
        return len(self._known.keys() | self._under_way.keys())

    def cap(self, subscription: UUID, url: str, *, share: int) -> int | None:
        """How many deliveries may be in hand; None for its whole `share`, 0 while it rests. A new URL begins anew."""
        known = self._known.get(subscription)
        if known is not None and known.url != url:
            del self._known[subscription]
            known = None
        under_way = self._under_way.get(subscription)
        if known is None and under_way is None:
            return None
        now_s = boot_s()
        oldest_s = now_s - next(iter(under_way.values())) if under_way else 0.0
        return cap(known.slow if known else NOT_SLOW, oldest_s=oldest_s, share=share, now_s=now_s)

    def knows(self, subscription: UUID) -> bool:
        """Whether its endpoint is slow, or asked for less."""
        return subscription in self._known

    def at_once(self, subscription: UUID) -> int:
        """How many POSTs may be under way."""
        known = self._known.get(subscription)
        at_once = known.slow.at_once if known else None
        return self._most_at_once if at_once is None else min(self._most_at_once, int(at_once))

    def rests(self, subscription: UUID, url: str) -> bool:
        """Whether this URL asked by Retry-After that nothing begins yet."""
        known = self._known.get(subscription)
        return known is not None and known.url == url and boot_s() < known.slow.rests_until_s

    def began(self, subscription: UUID, attempt: UUID) -> None:
        """A POST begins."""
        self._under_way.setdefault(subscription, {})[attempt] = boot_s()

    def withdrawn(self, subscription: UUID, attempt: UUID) -> None:
        """It was not sent after all: it says nothing of its endpoint."""
        posts = self._under_way[subscription]
        del posts[attempt]
        if not posts:
            del self._under_way[subscription]

    def ended(self, subscription: UUID, attempt: UUID, url: str, result: AttemptResult) -> None:
        """It has ended. On the hot path: an endpoint that is well costs one look-up."""
        self.withdrawn(subscription, attempt)
        known = self._known.get(subscription)
        if known is None and result.duration_ms <= 1000 * QUICK_S and not _asks_for_less(result):
            return
        asked_s = parse_retry_after(result.retry_after, now=wall()) if isinstance(result, Answered) else None
        now_s = boot_s()
        before = known.slow if known is not None and known.url == url else NOT_SLOW
        after = observe(before, result, most_at_once=self._most_at_once, asked_s=asked_s, now_s=now_s)
        if after.is_worth_keeping(now_s=now_s):
            self._known[subscription] = _Known(after, url, now_s)
        else:
            self._known.pop(subscription, None)
        if after.rests_until_s > max(now_s, before.rests_until_s):
            rest_s = round(after.rests_until_s - now_s, 3)
            log.info("endpoint.rests", subscription_id=public_id(SUBSCRIPTION, subscription), rest_s=rest_s)
        self._prune(now_s)

    def _prune(self, now_s: float) -> None:
        if now_s >= self._prune_at_s:
            self._prune_at_s = now_s + _REMEMBERED_S / 10
            self._known = {
                one: known
                for one, known in self._known.items()
                if known.seen_s > now_s - _REMEMBERED_S or known.slow.rests_until_s > now_s
            }


def _asks_for_less(result: AttemptResult) -> bool:
    return isinstance(result, Answered) and result.status in SLOW_DOWN
