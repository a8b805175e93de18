"""Hints: what is published after a commit. The rows say the same, so a hint that is lost is only late.

Work items go into the ladder; dead letters go to whoever binds to `hookhare.dead`, and are then marked published.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from uuid import UUID

import orjson
import structlog
from asyncpg import Record

from infra.broker.base import Broker, Outgoing, ToDead, ToWorkAfter
from infra.store import statements as sql
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.deliveries import DeadLetterKind
from schemas.errors import BrokerError, StoreError
from schemas.ids import DEAD_LETTER, DELIVERY, EVENT, SUBSCRIPTION, public_id
from schemas.messages import Message
from schemas.work import WorkItem, encode_work

log = structlog.get_logger(__name__)


class Hints:
    """Publishes in the background, at most `at_once` batches at a time; what is over waits for the reconciler."""

    def __init__(
        self,
        broker: Broker,
        store: Store,
        telemetry: Telemetry,
        *,
        timeout_s: float,
        batch_rows: int,
        at_once: int = 64,
    ) -> None:
        self._broker = broker
        self._store = store
        self._metrics = telemetry.metrics
        self._timeout_s = timeout_s
        self._batch_rows = batch_rows
        self._at_once = at_once
        self._tasks: set[asyncio.Task[object]] = set()
        self._one_publisher = asyncio.Lock()  # two would publish the same dead letters twice

    def publish(self, due: Sequence[tuple[WorkItem, float]], dead: Sequence[UUID]) -> None:
        """Publish the hints of one commit: work items with their delay in seconds, and deaths."""
        if due:
            self._begin(self._publish_work(due), len(due))
        if dead:
            self._begin(self.publish_dead_letters(), len(dead))

    async def finish(self, *, limit_s: float) -> None:
        """Wait for what is being published, `limit_s` seconds at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit_s)

    async def publish_dead_letters(self) -> int:
        """Publish the dead letters that are not marked published, and mark them. Raises nothing. Returns how many."""
        async with self._one_publisher:
            published = number = await self._publish_unmarked()
            while number == self._batch_rows:
                number = await self._publish_unmarked()
                published += number
        return published

    async def _publish_unmarked(self) -> int:
        """One batch, and how many of it. Locked meanwhile, so that another dispatcher takes others."""
        try:
            async with self._store.transaction() as connection:
                rows = await connection.fetch(sql.UNPUBLISHED_DEAD_LETTERS, self._batch_rows)
                errors = await self._send([Outgoing(ToDead(DeadLetterKind.DELIVERY), _letter(row)) for row in rows])
                published = [row["id"] for row, error in zip(rows, errors, strict=True) if error is None]
                if published:
                    await connection.execute(sql.MARK_DEAD_LETTERS_PUBLISHED, published)
        except StoreError as error:
            log.warning("dead_letters.not_published", error=str(error))
            return 0
        return len(published)

    async def _publish_work(self, due: Sequence[tuple[WorkItem, float]]) -> None:
        await self._send([Outgoing(ToWorkAfter(delay_s), encode_work(item)) for item, delay_s in due])

    async def _send(self, outgoing: Sequence[Outgoing]) -> Sequence[BrokerError | None]:
        if not outgoing:
            return ()
        errors = await self._broker.publish_many(outgoing, timeout_s=self._timeout_s)
        failed = [error for error in errors if error is not None]
        self._metrics.hints_published.add(len(errors) - len(failed))
        if failed:
            self._metrics.hints_failed.add(len(failed))
            log.warning("hints.failed", failed=len(failed), of=len(errors), error=str(failed[0]))
        return errors

    def _begin(self, work: Coroutine[object, object, object], count: int) -> None:
        if len(self._tasks) >= self._at_once:
            work.close()
            self._metrics.hints_failed.add(count)
            log.warning("hints.failed", failed=count, of=count, error="the broker is slow; left to the reconciler")
            return
        task = asyncio.create_task(work, name="publish hints")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _letter(row: Record) -> Message:
    """A dead letter for whoever binds to hookhare.dead: what died and why, not the payload, which the API shows."""
    body = {
        "id": public_id(DEAD_LETTER, row["id"]),
        "kind": DeadLetterKind.DELIVERY,
        "reason": row["reason"],
        "tenant": row["tenant"],
        "delivery": public_id(DELIVERY, row["delivery_id"]),
        "cycle": row["cycle"],
        "subscription": public_id(SUBSCRIPTION, row["subscription_id"]),
        "event": {
            "id": public_id(EVENT, row["event_id"]),
            "type": row["type"],
            "source": row["source"],
            "external_id": row["external_id"],
        },
    }
    return Message(body=orjson.dumps(body), content_type="application/json", type="hookhare.dead_letter")
