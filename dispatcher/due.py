"""Retries that are due: work items from the ladder become claims, or, if their row has moved on, nothing."""

import asyncio
from collections.abc import Sequence

import structlog

from dispatcher.claims import Claims
from dispatcher.clock import wall
from dispatcher.core.conclude import Held
from dispatcher.core.gate import Hold
from dispatcher.index import SubscriptionIndex
from dispatcher.lanes import Claim, Lanes
from dispatcher.settlement import Outcome, Settlement
from infra.broker.base import Broker, Consumer, Outgoing, Received, ToWorkAfter
from infra.settings import Settings
from schemas.errors import StoreError
from schemas.work import WorkItem, decode_work

log = structlog.get_logger(__name__)

_LONGEST_PAUSE_S = 2.0


class Due:
    """Consumes the work queue."""

    def __init__(
        self,
        broker: Broker,
        claims: Claims,
        index: SubscriptionIndex,
        lanes: Lanes,
        settlement: Settlement,
        settings: Settings,
    ) -> None:
        self._broker = broker
        self._claims = claims
        self._index = index
        self._lanes = lanes
        self._settlement = settlement
        self._settings = settings

    async def run(self, consumer: Consumer) -> None:
        """Claim for ever; at the bound of the work in hand, stop taking."""
        while True:
            await self._lanes.room(self._settings.max_event_bytes)
            received = await consumer.receive(max(1, room_for_claims(self._lanes, self._settings)))
            now_ms = int(wall().timestamp() * 1000)
            due, early = [], []
            for one in received:
                item = decode_work(one.message)
                if item is None:
                    log.error("work.unreadable", body=one.message.body[:200])
                elif item.not_before_ms > now_ms:
                    early.append((one, item))
                else:
                    due.append(item)
            parked = await self._park(early, now_ms)
            await self._claim_all(due)
            not_parked = {id(one) for one, _ in early} - {id(one) for one in parked}
            await consumer.ack([one for one in received if id(one) not in not_parked])
            await consumer.release([one for one in received if id(one) in not_parked])

    async def _park(self, early: Sequence[tuple[Received, WorkItem]], now_ms: int) -> list[Received]:
        """Back onto the ladder for the time that is left; those confirmed."""
        if not early:
            return []
        outgoing = [Outgoing(ToWorkAfter((item.not_before_ms - now_ms) / 1000), one.message) for one, item in early]
        errors = await self._broker.publish_many(outgoing, timeout_s=self._settings.broker_timeout_s)
        return [one for (one, _), error in zip(early, errors, strict=True) if error is None]

    async def _claim_all(self, due: Sequence[WorkItem]) -> None:
        """Claim what there are places for, and then the rest: others took some while these were received."""
        while due:
            await self._lanes.room(self._settings.max_event_bytes)
            room = room_for_claims(self._lanes, self._settings)
            some, due = due[:room], due[room:]
            with self._lanes.reserved(len(some)):
                claims = await self._claim(some)
            self._take(claims)

    async def _claim(self, due: Sequence[WorkItem]) -> list[Claim]:
        pause_s = 0.05
        while True:
            try:
                return await self._claims.due(due)
            except StoreError as error:
                log.warning("work.retry", items=len(due), error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _take(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            endpoint = self._index.get(claim.subscription)
            decision = (
                Hold("the subscription was deleted")
                if endpoint is None
                else self._lanes.gate(endpoint, len(claim.content.data))
            )
            self._lanes.place(claim.subscription, len(claim.content.data))
            self._lanes.take(claim)
            if isinstance(decision, Hold):
                self._settlement.add(Outcome(claim, Held(decision.reason), None))
            else:
                self._lanes.submit(claim)


def room_for_claims(lanes: Lanes, settings: Settings) -> int:
    """How many stored deliveries may be claimed now, when each may bring an event of the largest size."""
    by_bytes = lanes.free_bytes // settings.max_event_bytes
    return max(0, min(lanes.free, by_bytes, settings.batch_rows))
