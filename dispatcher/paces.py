"""The pace of endpoints that have a rate limit: exact across the fleet, since only who holds an endpoint's lease sends.

A pace begins with the lease and goes on where the last owner left it (`subscriptions.paced_until`). The next owner of a
lease that was not given back in order begins with an empty bucket, so a limit holds over a crash as well.
"""

import asyncio
from uuid import UUID

from dispatcher.clock import boot_s
from dispatcher.core.pace import RateLimit, full_at_after_one, turns, wait_s
from dispatcher.index import Endpoint


class Paces:
    """When the buckets of the endpoints that this dispatcher feeds are full again, by boot time.

    Claims are made for turns up to `ahead_s` seconds ahead, so that a limit that changes is soon in force.
    """

    def __init__(self, *, ahead_s: float) -> None:
        self._ahead_s = ahead_s
        self._full_at_s: dict[UUID, float] = {}
        self._under: dict[UUID, RateLimit] = {}  # the limit that it is reckoned by

    def has(self, subscription: UUID) -> bool:
        """Whether its lease is ours, and its pace known."""
        return subscription in self._full_at_s

    def begin(self, subscription: UUID, *, full_in_s: float) -> None:
        """The lease is ours; its bucket is full in so many seconds."""
        self._full_at_s[subscription] = boot_s() + full_in_s

    def full_in_s(self, subscription: UUID) -> float:
        """For the next owner of its lease. Zero, or less, for a full bucket."""
        return self._full_at_s.get(subscription, float("-inf")) - boot_s()

    def end(self, subscription: UUID) -> None:
        """The lease is ours no more."""
        self._full_at_s.pop(subscription, None)
        self._under.pop(subscription, None)

    def keep(self, subscriptions: set[UUID]) -> None:
        """Forget every lease that is not among these."""
        for lost in self._full_at_s.keys() - subscriptions:
            self.end(lost)

    def room(self, endpoint: Endpoint, *, in_hand: int, waiting: int) -> int | None:
        """How many more may be claimed; None for no limit. `waiting` are those in hand that have no turn yet.

        While there are some in hand, fewer than half of what the time ahead takes are left for later: a claim is a
        transaction.
        """
        if endpoint.limit is None:
            return None
        now_s = boot_s()
        full_at_s = self._full_at(endpoint.id, endpoint.limit, now_s)
        if full_at_s is None:
            return 0
        room = turns(endpoint.limit, full_at_s=full_at_s, now_s=now_s, ahead_s=self._ahead_s) - waiting
        return 0 if in_hand and room < endpoint.limit.per_s * self._ahead_s / 2 else room

    async def turn(self, endpoint: Endpoint) -> bool:
        """Wait until a request may be sent; False when it is not for this dispatcher to send it."""
        if endpoint.limit is None:
            return True
        now_s = boot_s()
        full_at_s = self._full_at(endpoint.id, endpoint.limit, now_s)
        if full_at_s is None:
            return False
        # Taken before the wait: whoever comes meanwhile waits for the turn after this one.
        self._full_at_s[endpoint.id] = full_at_after_one(endpoint.limit, full_at_s=full_at_s, now_s=now_s)
        if (pause_s := wait_s(endpoint.limit, full_at_s=full_at_s, now_s=now_s)) > 0:
            await asyncio.sleep(pause_s)
        return endpoint.id in self._full_at_s

    def _full_at(self, subscription: UUID, limit: RateLimit, now_s: float) -> float | None:
        """None without the lease. What was owed under a slower limit, before it was changed, is not owed any more."""
        full_at_s = self._full_at_s.get(subscription)
        if full_at_s is not None and self._under.get(subscription) != limit:
            self._under[subscription] = limit
            full_at_s = self._full_at_s[subscription] = min(full_at_s, now_s + limit.refill_s + self._ahead_s)
        return full_at_s
