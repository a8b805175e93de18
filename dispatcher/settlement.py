"""Settlement: outcomes are committed in groups, first; then the hints are published.

An outcome is kept until it is committed, however long the database is away: forgetting it would be a crash. Its place
in hand is given back only then, so the waiting outcomes are as bounded as the work in hand. A hint that cannot be
published is left to the reconciler.
"""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from time import perf_counter
from uuid import UUID

import asyncpg
import msgspec
import structlog

from dispatcher.clock import wall
from dispatcher.core.conclude import Canceled, Dead, Delivered, Expired, Held, RetryIn, Verdict
from dispatcher.core.gate import fair_share
from dispatcher.core.settle import Row, Settled, is_awaiting_hint, settle
from dispatcher.core.streak import Failures, Said, said, tally
from dispatcher.hints import Hints
from dispatcher.lanes import Claim, Lanes
from dispatcher.streaks import Streaks, end_streaks
from infra.broker.ladder import rung_ms
from infra.store import deliveries, expunging
from infra.store import statements as sql
from infra.store.arrays import arrays
from infra.store.store import Store
from infra.store.streaks import Target
from infra.telemetry import Telemetry
from schemas.deliveries import Answered, AttemptResult, NoAnswer, Status
from schemas.errors import StoreError
from schemas.fields import is_operational
from schemas.ids import DELIVERY, EVENT, SUBSCRIPTION, key_time, public_id
from schemas.work import WorkItem

log = structlog.get_logger(__name__)

_LONGEST_PAUSE_S = 2.0
_REASON_LENGTH = 1000
# An outcome that nobody waits for is committed with the next one that somebody does, or with others of its kind: so an
# endpoint that drains its backlog at a limit adds next to no commits to those of the others.
_COMPANY_S = 0.1
_COMPANY_ROWS = 20


class Attempted(msgspec.Struct, frozen=True, eq=False):
    """A POST that was made. `id` is made once, so that a repeated commit records it once."""

    id: UUID
    started_at: datetime
    result: AttemptResult
    url: str


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """What became of a claim; `attempted` is None when no POST began."""

    claim: Claim
    verdict: Verdict
    attempted: Attempted | None


class Settlement:
    """Commits outcomes until `stop` is called and nothing is left."""

    def __init__(
        self,
        store: Store,
        lanes: Lanes,
        hints: Hints,
        streaks: Streaks,
        telemetry: Telemetry,
        *,
        incarnation: UUID,
        batch_rows: int,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._hints = hints
        self._streaks = streaks
        self._telemetry = telemetry
        self._incarnation = incarnation
        self._batch_rows = batch_rows
        self._waiting: list[Outcome] = []
        self._wake = asyncio.Event()
        self._stopping = False

    def add(self, outcome: Outcome, *, patient: bool = False) -> None:
        """Take an outcome; it will be committed. A patient one waits a moment for others to be committed with."""
        self._waiting.append(outcome)
        if not patient or len(self._waiting) >= _COMPANY_ROWS or self._is_short_of_places(outcome.claim.subscription):
            self._wake.set()
        elif len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(_COMPANY_S, self._wake.set)

    def _is_short_of_places(self, subscription: UUID) -> bool:
        """Whether what waits for its commit may keep the endpoint from having more in hand."""
        return 4 * self._lanes.in_hand_of(subscription) > 3 * fair_share(self._lanes.free)

    def stop(self) -> None:
        """End `run` once everything is committed."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Commit whatever has gathered while the last commit was under way; only patient outcomes wait for a timer."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting[: self._batch_rows], self._waiting[self._batch_rows :]
            if self._waiting:
                self._wake.set()
            if batch:
                await self._settle(batch)
            if self._stopping and not self._waiting:
                return

    async def _settle(self, batch: Sequence[Outcome]) -> None:
        """Commit a batch, again and again until it is; one that the database cannot take does not keep others back."""
        pause_s = 0.05
        while True:
            began = perf_counter()
            try:
                settled, failing = await self._commit(batch)
                break
            except StoreError as error:
                log.warning("settlement.retry", outcomes=len(batch), error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except Exception:
                log.exception("settlement.failed", outcomes=len(batch))
                if len(batch) == 1:
                    await asyncio.sleep(_LONGEST_PAUSE_S)
                    batch = [_without_details(batch[0])]
                    continue
                for outcome in batch:
                    await self._settle([outcome])
                return
        self._telemetry.metrics.settle_s.record(perf_counter() - began)
        self._streaks.end(failing)
        self._conclude(batch, settled)

    def _conclude(self, batch: Sequence[Outcome], settled: Sequence[Settled]) -> None:
        """After the commit: hints go out, places are given back, and the attempt is told."""
        self._streaks.observe(tally(_attempts(batch, settled)))
        due, dead = [], []
        for outcome, result in zip(batch, settled, strict=True):
            claim = outcome.claim
            if isinstance(outcome.verdict, RetryIn) and is_awaiting_hint(result.row, claim.held):
                not_before = wall() + timedelta(seconds=outcome.verdict.delay_s)
                item = WorkItem(
                    claim.delivery, claim.held.cycle, claim.held.attempt + 1, int(not_before.timestamp() * 1000)
                )
                due.append((item, outcome.verdict.delay_s))
            if isinstance(outcome.verdict, Dead | Expired) and result.row.status is Status.DEAD:
                dead.append(claim.delivery)
            if isinstance(outcome.verdict, Dead) and outcome.verdict.disables and outcome.attempted is not None:
                self._streaks.gone(claim.subscription, outcome.attempted.url, outcome.verdict.reason)
            if isinstance(outcome.verdict, Held):
                self._lanes.held.add(claim.subscription)
            self._lanes.done(claim)
            self._tell(outcome, superseded=result.superseded)
        self._hints.publish(due, dead)

    async def _commit(self, batch: Sequence[Outcome]) -> tuple[list[Settled], Collection[Target]]:
        """What became of each, and the endpoints whose streaks are still to be ended."""
        async with self._store.transaction() as connection:
            failing = await _write_endpoints(connection, batch)
            ids = sorted({outcome.claim.delivery for outcome in batch})
            rows = {
                record["id"]: Row(
                    Status(record["status"]),
                    record["cycle"],
                    record["attempts"],
                    record["fence"],
                    record["claimed"],
                    record["reason"],
                )
                for record in await connection.fetch(sql.LOCK_DELIVERIES, ids, ids[0], ids[-1])
            }
            before = dict(rows)
            settled = []
            for outcome in batch:
                result = settle(rows.get(outcome.claim.delivery, _GONE), outcome.claim.held, outcome.verdict)
                if outcome.claim.delivery in rows:
                    rows[outcome.claim.delivery] = result.row
                settled.append(result)
            await _write_rows(connection, {key: row for key, row in rows.items() if row != before[key]})
            await self._write_attempts(connection, batch, settled)
            return settled, failing

    async def _write_attempts(
        self, connection: asyncpg.Connection, batch: Sequence[Outcome], settled: Sequence[Settled]
    ) -> None:
        # Of an expunged event nothing has been unfinished since, so all that still comes is superseded. Its row is
        # locked, and so was it by who expunged: this sees either that, or is seen by it.
        late = {
            one.claim.event for one, result in zip(batch, settled, strict=True) if one.attempted and result.superseded
        }
        expunged = await expunging.expunged_of(connection, late)
        records = [
            _attempt_record(
                outcome,
                outcome.attempted,
                result.superseded,
                self._incarnation,
                answer_kept=outcome.claim.event not in expunged,
            )
            for outcome, result in zip(batch, settled, strict=True)
            if outcome.attempted is not None
        ]
        if records:
            await connection.execute(sql.INSERT_ATTEMPTS, *arrays(records))

    def _tell(self, outcome: Outcome, *, superseded: bool) -> None:
        """The one wide line of an attempt, and what is counted of it."""
        claim, attempted, verdict = outcome.claim, outcome.attempted, outcome.verdict
        if isinstance(verdict, Expired):
            self._tell_of_expiry(claim, verdict, superseded=superseded)
        if attempted is None:
            return
        result = attempted.result
        kind = _kind(verdict)
        metrics = self._telemetry.metrics
        metrics.attempts.add(1, {"outcome": kind})
        metrics.attempt_s.record(result.duration_ms / 1000)
        if isinstance(verdict, Delivered) and not superseded:
            metrics.end_to_end_s.record((wall() - key_time(claim.event)).total_seconds())
        log.info(
            "delivery.attempted",
            delivery_id=public_id(DELIVERY, claim.delivery),
            event_id=public_id(EVENT, claim.event),
            subscription_id=public_id(SUBSCRIPTION, claim.subscription),
            event_type=claim.content.type,
            cycle=claim.held.cycle,
            attempt=claim.held.attempt,
            outcome=kind,
            superseded=superseded,
            status_code=result.status if isinstance(result, Answered) else None,
            reason=None if isinstance(verdict, Delivered) else verdict.reason,
            retry_in_s=round(verdict.delay_s, 3) if isinstance(verdict, RetryIn) else None,
            duration_ms=result.duration_ms,
            **result.timings._asdict(),
            remote_address=result.remote_address,
        )

    def _tell_of_expiry(self, claim: Claim, verdict: Expired, *, superseded: bool) -> None:
        log.info(
            "delivery.expired",
            delivery_id=public_id(DELIVERY, claim.delivery),
            event_id=public_id(EVENT, claim.event),
            subscription_id=public_id(SUBSCRIPTION, claim.subscription),
            event_type=claim.content.type,
            attempts=claim.held.attempt - 1,
            superseded=superseded,
            reason=verdict.reason,
        )


# A delivery whose row is gone with its partition: nothing applies to it.
_GONE = Row(Status.CANCELED, cycle=-1, attempts=0, fence=-1, claimed=False)


async def _write_endpoints(connection: asyncpg.Connection, batch: Sequence[Outcome]) -> Collection[Target]:
    """Hold the endpoints of what is held, and end the streaks of those that took something. First, to keep the order
    of locks. Returned are those whose streaks are still to be ended."""
    held = sorted({outcome.claim.subscription for outcome in batch if isinstance(outcome.verdict, Held)})
    if held:
        await connection.execute(sql.LOCK_ENDPOINTS, held)
        await connection.execute(sql.HOLD_ENDPOINTS, held)
    delivered = {
        (outcome.claim.subscription, outcome.attempted.url)
        for outcome in batch
        if isinstance(outcome.verdict, Delivered) and outcome.attempted is not None
    }
    return await end_streaks(connection, delivered)


async def _write_rows(connection: asyncpg.Connection, rows: dict[UUID, Row]) -> None:
    if not rows:
        return
    ids = sorted(rows)
    changes = [_change(key, rows[key]) for key in ids]
    await connection.execute(sql.UPDATE_DELIVERIES, *arrays(changes), ids[0])
    dead = [key for key in ids if rows[key].status is Status.DEAD]
    if dead:
        await deliveries.bury(connection, dead)


def _change(key: UUID, row: Row) -> tuple[object, ...]:
    reason = row.reason and _storable(row.reason)
    if row.status is not Status.RETRYING or row.delay_s is None:
        return (key, row.status, reason, row.attempts, None, None, row.claimed)
    # Beyond the last rung (24 h and jitter) the hint comes early and is parked again until its time.
    rung_s = max(row.delay_s, rung_ms(row.delay_s) / 1000)
    return (key, row.status, reason, row.attempts, row.delay_s, rung_s, row.claimed)


def _attempts(batch: Sequence[Outcome], settled: Sequence[Settled]) -> Iterator[tuple[Target, Said, Failures]]:
    """What the attempts of a batch say of their endpoints."""
    for outcome, result in zip(batch, settled, strict=True):
        if outcome.attempted is not None:
            what = said(outcome.verdict, outcome.attempted.result, superseded=result.superseded)
            failures = _failure(outcome) if what is Said.FAILED else _NO_FAILURES
            yield (outcome.claim.subscription, outcome.attempted.url), what, failures


_NO_FAILURES = Failures(0, ordinary=False, last="")


def _failure(outcome: Outcome) -> Failures:
    reason = "" if isinstance(outcome.verdict, Delivered) else _storable(outcome.verdict.reason)
    return Failures(1, ordinary=not is_operational(outcome.claim.content.type), last=reason)


def _attempt_record(
    outcome: Outcome, attempted: Attempted, superseded: bool, incarnation: UUID, *, answer_kept: bool
) -> tuple[object, ...]:
    """Without `answer_kept` nothing of what the endpoint said, which may be what it was sent."""
    verdict, held = outcome.verdict, outcome.claim.held
    result = attempted.result
    status, headers, body, failure = None, None, None, None
    match result:
        case Answered():
            status = result.status
            if answer_kept:
                headers, body = result.headers, result.body
        case NoAnswer():
            failure = result.failure
    return (
        attempted.id,
        outcome.claim.delivery,
        held.cycle,
        held.attempt,
        attempted.started_at,
        result.duration_ms,
        _kind(verdict),
        superseded,
        status,
        failure,
        None if isinstance(verdict, Delivered) else _storable(verdict.reason),
        body,
        result.remote_address,
        attempted.url,
        incarnation,
        headers,
        *result.timings,
    )


def _kind(verdict: Verdict) -> str:
    match verdict:
        case Delivered():
            return "delivered"
        case RetryIn():
            return "retry"
        case Dead():
            return "dead"
        case Held():
            return "held"
        case Expired():
            return "expired"
        case Canceled():
            return "canceled"


def _storable(text: str) -> str:
    """PostgreSQL's text holds no NUL; what an endpoint sends may hold anything."""
    return text.replace("\x00", "\ufffd")[:_REASON_LENGTH]


def _without_details(outcome: Outcome) -> Outcome:
    """The same outcome without what the endpoint sent, for a database that refuses to store that."""
    return Outcome(outcome.claim, outcome.verdict, None)
