"""Hints are published in the background, and only so many at a time: the rows say the same."""

import asyncio
from collections.abc import Sequence
from typing import cast

from uuid_utils.compat import uuid7

from dispatcher.hints import Hints
from infra.broker.base import Broker, Outgoing
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.errors import BrokerError
from schemas.work import WorkItem


class StuckBroker:
    """Confirms nothing until it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.under_way = 0

    async def publish_many(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> Sequence[BrokerError | None]:
        self.under_way += 1
        await self.let_go.wait()
        return [None] * len(outgoing)


async def test_what_a_slow_broker_has_no_place_for_is_left_to_the_reconciler(
    store: Store, telemetry: Telemetry
) -> None:
    broker = StuckBroker()
    hints = Hints(cast(Broker, broker), store, telemetry, timeout_s=60, batch_rows=100, at_once=3)
    for _ in range(10):
        hints.publish([(WorkItem(uuid7(), 0, 2, 0), 1.0)], [])
    publishing = [task for task in asyncio.all_tasks() if task.get_name() == "publish hints"]
    assert len(publishing) == 3
    await asyncio.sleep(0)
    broker.let_go.set()
    await hints.finish(limit_s=5)
    assert broker.under_way == 3
