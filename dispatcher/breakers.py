"""The breakers of endpoints that fail, fleet-wide: each dispatcher counts for itself, and who trips holds the endpoint.

While a breaker is open its endpoint is held, so the one dispatcher that has its lease sends the one probe. Where it
stands is in the subscription's row (`breaker_until`, `breaker_times`), for the other dispatchers and the next owner.
"""

from collections.abc import Callable, Mapping
from uuid import UUID

import asyncpg
import structlog

from dispatcher.clock import boot_s
from dispatcher.core.breaker import WELL, Breaker, BreakerPolicy, Open, health, observe, probes
from dispatcher.lanes import Claim
from infra.store import statements as sql
from infra.telemetry import Telemetry
from schemas.deliveries import AttemptResult
from schemas.ids import SUBSCRIPTION, public_id

log = structlog.get_logger(__name__)


class Breakers:
    """What this dispatcher knows of each endpoint that failed; an endpoint that is not here is well."""

    def __init__(self, policy: BreakerPolicy, telemetry: Telemetry) -> None:
        self.on_change: Callable[[UUID], None] = lambda _: None
        self._policy = policy
        self._metrics = telemetry.metrics
        self._breakers: dict[UUID, Breaker] = {}
        self._probes: dict[UUID, UUID] = {}  # of an open breaker, the delivery that may be attempted
        self._unsaved: set[UUID] = set()
        self._prune_at_s = 0.0

    def is_open(self, subscription: UUID) -> bool:
        return isinstance(self._breakers.get(subscription), Open)

    def room(self, subscription: UUID, *, in_hand: int) -> int | None:
        """How many more deliveries of its backlog may be fed; None for as many as there are."""
        return probes(self._breakers.get(subscription, WELL), in_hand=in_hand, now_s=boot_s())

    def take(self, claim: Claim) -> None:
        """A delivery that was fed: the probe, if its endpoint's breaker is open."""
        if self.is_open(claim.subscription):
            self._probes[claim.subscription] = claim.delivery

    def refuses(self, claim: Claim) -> bool:
        """Whether a delivery in hand may not be attempted."""
        return self.is_open(claim.subscription) and self._probes.get(claim.subscription) != claim.delivery

    def observe(self, claim: Claim, result: AttemptResult) -> None:
        """Learn from an attempt. On the hot path: an endpoint that is well costs one look-up."""
        subscription = claim.subscription
        before = self._breakers.get(subscription, WELL)
        if self.refuses(claim):
            return  # it was under way when the breaker opened
        after = observe(before, health(result), now_s=boot_s(), policy=self._policy)
        if after is before:
            return
        self._put(subscription, after)
        if isinstance(before, Open) or isinstance(after, Open):
            self._probes.pop(subscription, None)
            self._unsaved.add(subscription)
            self._tell(subscription, after)
            self.on_change(subscription)

    def know(self, held: Mapping[UUID, Open | None]) -> None:
        """Take over what the rows of all held endpoints say, except where something newer is to be saved."""
        for subscription, row in held.items():
            if subscription not in self._unsaved:
                if row is not None:
                    self._breakers[subscription] = row
                elif self.is_open(subscription):
                    del self._breakers[subscription]
        ours = [one for one, breaker in self._breakers.items() if isinstance(breaker, Open)]
        for subscription in ours:
            if subscription not in held and subscription not in self._unsaved:
                del self._breakers[subscription]
        self._prune()

    async def save(self, connection: asyncpg.Connection, incarnation: UUID) -> Mapping[UUID, Breaker]:
        """Write what has changed, in the caller's transaction; what is returned is `saved` once it is committed."""
        changed = {one: self._breakers.get(one, WELL) for one in sorted(self._unsaved)}
        if changed:
            now_s = boot_s()
            opened = {one: breaker for one, breaker in changed.items() if isinstance(breaker, Open)}
            await connection.execute(sql.LOCK_ENDPOINTS, list(changed))
            await connection.execute(
                sql.OPEN_BREAKERS,
                incarnation,
                list(opened),
                [breaker.until_s - now_s for breaker in opened.values()],
                [breaker.times for breaker in opened.values()],
            )
            await connection.execute(sql.CLOSE_BREAKERS, incarnation, [one for one in changed if one not in opened])
        return changed

    def saved(self, written: Mapping[UUID, Breaker]) -> None:
        """This is committed; what has changed again meanwhile is still to be saved."""
        self._unsaved -= {one for one, breaker in written.items() if self._breakers.get(one, WELL) == breaker}

    def _prune(self) -> None:
        """Once in a window, forget the windows that are long over."""
        now_s = boot_s()
        if now_s >= self._prune_at_s:
            self._prune_at_s = now_s + self._policy.window_s
            old_s = now_s - 2 * self._policy.window_s
            self._breakers = {
                one: breaker
                for one, breaker in self._breakers.items()
                if isinstance(breaker, Open) or breaker.since_s > old_s
            }

    def _put(self, subscription: UUID, breaker: Breaker) -> None:
        if breaker == WELL:
            self._breakers.pop(subscription, None)
        else:
            self._breakers[subscription] = breaker

    def _tell(self, subscription: UUID, breaker: Breaker) -> None:
        self._metrics.breakers.add(1, {"to": "open" if isinstance(breaker, Open) else "closed"})
        log.warning(
            "breaker.opened" if isinstance(breaker, Open) else "breaker.closed",
            subscription_id=public_id(SUBSCRIPTION, subscription),
            rest_s=round(breaker.until_s - boot_s(), 3) if isinstance(breaker, Open) else None,
            times=breaker.times if isinstance(breaker, Open) else None,
        )
