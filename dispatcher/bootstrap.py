"""Wires one dispatcher by hand and runs it until it is told to stop, then drains it.

Draining: stop taking; hold what has not begun; wait for the POSTs under way, `drain_s` at most; commit every
outcome; give back the leases and the heartbeat, so that the fleet need not wait for them to lapse.
"""

import asyncio
import resource
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

import structlog

from dispatcher.admission import Admission
from dispatcher.admission_in_order import admit_in_order
from dispatcher.announcements import Announcements
from dispatcher.authorization import Authorization
from dispatcher.breakers import Breakers
from dispatcher.burial import Burials
from dispatcher.claims import Claims
from dispatcher.core.breaker import BreakerPolicy
from dispatcher.core.conclude import Held
from dispatcher.core.liveness import Times, contradictions
from dispatcher.core.streak import Thresholds
from dispatcher.delivery import Deliverer
from dispatcher.due import Due
from dispatcher.feeder import Feeder
from dispatcher.handshake import Handshakes
from dispatcher.health import serve_health
from dispatcher.heartbeat import Heartbeat
from dispatcher.hints import Hints
from dispatcher.index import SubscriptionIndex
from dispatcher.keeper import Keeper
from dispatcher.lanes import Lanes
from dispatcher.paces import Paces
from dispatcher.reconciler import Reconciler
from dispatcher.roles import Name, Role
from dispatcher.settlement import Outcome, Settlement
from dispatcher.streaks import Streaks
from dispatcher.upkeep import Upkeep
from infra.broker.base import Broker, Queue
from infra.broker.open import open_broker
from infra.crypto import Vault
from infra.egress import open_egress
from infra.settings import Settings
from infra.store.store import Store, open_store
from infra.telemetry import Telemetry, open_telemetry
from schemas.errors import ConfigurationError, Problem, StoreError
from schemas.subscriptions import MAX_TIMEOUT_S

log = structlog.get_logger(__name__)

_KEEPER_PREFETCH = 100
_SOCKETS = 65_536


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """A running dispatcher. `failed` ends when one of its parts has crashed, with that part's exception."""

    incarnation: UUID
    port: int
    failed: asyncio.Future[None]


@asynccontextmanager
async def open_dispatcher(settings: Settings) -> AsyncIterator[Dispatcher]:
    """A dispatcher, running until exit.

    Raises ConfigurationError, StoreUnavailable, SchemaMismatch or BrokerUnavailable when it cannot start.
    """
    times = _times(settings)
    vault = Vault.from_settings(settings)
    _allow_many_sockets()
    async with AsyncExitStack() as stack:
        telemetry = stack.enter_context(open_telemetry(settings, "hookhare-dispatcher"))
        store = await stack.enter_async_context(open_store(settings))
        await store.check_schema()
        broker = await stack.enter_async_context(open_broker(settings))
        heartbeat = await Heartbeat(store, times).start()
        stack.push_async_callback(heartbeat.retire)
        port = await stack.enter_async_context(
            serve_health(
                host=settings.dispatcher_host,
                port=settings.dispatcher_port,
                store=store,
                broker=broker,
                heartbeat=heartbeat,
                telemetry=telemetry,
                timeout_s=settings.broker_timeout_s,
            )
        )
        failed = await stack.enter_async_context(_parts(settings, store, broker, vault, heartbeat, telemetry))
        log.info("dispatcher.started", incarnation=str(heartbeat.incarnation), port=port)
        yield Dispatcher(heartbeat.incarnation, port, failed)
        log.info("dispatcher.stopping", incarnation=str(heartbeat.incarnation))


@asynccontextmanager
async def _parts(
    settings: Settings, store: Store, broker: Broker, vault: Vault, heartbeat: Heartbeat, telemetry: Telemetry
) -> AsyncIterator[asyncio.Future[None]]:
    """The parts, wired and running. At exit, in this order: nothing more is taken, the consumers close, the work in
    hand is drained, the leases are given back, and the heart stops."""
    index = SubscriptionIndex(vault, origin=settings.webhook_origin)
    lanes = _lanes(settings)
    hints = Hints(broker, store, telemetry, timeout_s=settings.broker_timeout_s, batch_rows=settings.batch_rows)
    streaks = Streaks(store, _thresholds(settings), period_s=settings.feeder_period_s)
    settlement = Settlement(
        store, lanes, hints, streaks, telemetry, incarnation=heartbeat.incarnation, batch_rows=settings.batch_rows
    )
    claims = Claims(store, index, heartbeat)
    paces = Paces(ahead_s=2 * settings.feeder_period_s)
    breakers = Breakers(_breaker_policy(settings), telemetry)
    feeder = Feeder(store, claims, index, lanes, paces, breakers, heartbeat, settings)
    lanes.on_room = breakers.on_change = feeder.nudge
    reconciler = Reconciler(store, claims, lanes, settlement, hints, heartbeat, telemetry, settings)
    upkeep = Upkeep(store, lanes, heartbeat, telemetry, settings)
    burials = Burials(broker, telemetry, timeout_s=settings.broker_timeout_s)
    role = Role(Name.ADMISSION, store, heartbeat) if settings.ordered_admission else None
    admission = Admission(store, burials, index, lanes, heartbeat, telemetry, settings, role)
    due = Due(broker, claims, index, lanes, settlement, settings)
    keeper = Keeper(store, telemetry)
    async with store.connection() as connection:
        await index.refresh(connection)
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with AsyncExitStack() as stack:
        egress = await stack.enter_async_context(open_egress(settings))
        authorization = Authorization(egress)
        stack.push_async_callback(authorization.close)
        handshakes = Handshakes(store, index, egress, authorization, origin=settings.webhook_origin)
        deliverer = Deliverer(
            index, egress, heartbeat, settlement, paces, breakers, lanes.caps, telemetry, handshakes, authorization
        )
        lanes.start(deliverer.deliver)
        beating = _watch(failed, "heartbeat", heartbeat.run())
        stack.push_async_callback(_cancel, [beating])
        stack.push_async_callback(feeder.release)
        counting = _watch(failed, "streaks", streaks.run())
        stack.push_async_callback(_end, streaks, counting, limit_s=settings.database_timeout_s)
        stack.push_async_callback(
            _drain, settings, lanes, settlement, hints, reconciler, _watch(failed, "settlement", settlement.run())
        )
        if role is None:
            events = await stack.enter_async_context(broker.consume(Queue.EVENTS, prefetch=settings.prefetch))
            admitting = admission.run(events)
        else:
            admitting = admit_in_order(admission, role, broker, prefetch=settings.prefetch)
        work = await stack.enter_async_context(broker.consume(Queue.WORK, prefetch=settings.prefetch))
        dead = await stack.enter_async_context(broker.consume(Queue.DEAD_LETTERS, prefetch=_KEEPER_PREFETCH))
        unrouted = await stack.enter_async_context(broker.consume(Queue.UNROUTED, prefetch=_KEEPER_PREFETCH))
        takers = {
            "admission": admitting,
            "due": due.run(work),
            "keeper of dead letters": keeper.run(dead, Queue.DEAD_LETTERS),
            "keeper of the unrouted": keeper.run(unrouted, Queue.UNROUTED),
            "feeder": feeder.run(),
            "reconciler": reconciler.run(),
            "announcements": Announcements(broker, store, settings).run(),
            "replays": upkeep.run_replays(),
            "maintenance": upkeep.run_maintenance(),
            "gauges": upkeep.run_gauges(),
        }
        stack.push_async_callback(_cancel, [_watch(failed, *taker) for taker in takers.items()])
        yield failed


async def _drain(
    settings: Settings,
    lanes: Lanes,
    settlement: Settlement,
    hints: Hints,
    reconciler: Reconciler,
    settling: asyncio.Task[None],
) -> None:
    for claim in lanes.take_waiting():
        settlement.add(Outcome(claim, Held("the dispatcher stopped"), None))
    await lanes.finish(limit_s=settings.drain_s)
    try:
        await reconciler.hold_lost_claims(age_s=0)  # of what was interrupted between its commit and the lanes
    except StoreError as error:
        log.warning("dispatcher.claims_left", error=str(error))
    settlement.stop()
    done, _ = await asyncio.wait([settling], timeout=settings.settle_allowance_s)
    if not done:
        log.error("dispatcher.not_settled", outcomes=len(lanes.in_hand))  # as after a crash, the reconciler holds them
    await hints.finish(limit_s=settings.broker_timeout_s)


async def _end(streaks: Streaks, counting: asyncio.Task[None], *, limit_s: float) -> None:
    """After the last outcome: the failures that were not counted yet."""
    streaks.stop()
    await asyncio.wait([counting], timeout=limit_s)
    await _cancel([counting])


def _watch(failed: asyncio.Future[None], name: str, part: Coroutine[None, None, None]) -> asyncio.Task[None]:
    """Run a part; its crash is the dispatcher's: a new process begins from the rows."""

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled():
            error: BaseException | None = asyncio.CancelledError() if not task.cancelling() else None
        else:
            error = task.exception()
        if error is not None and not failed.done():
            log.error("dispatcher.part_failed", part=name, exc_info=error)
            failed.set_exception(RuntimeError(f"{name} failed: {type(error).__name__}"))
            failed.exception()  # seen, also when nobody awaits it any more

    task = asyncio.create_task(part, name=name)
    task.add_done_callback(ended)
    return task


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


def _lanes(settings: Settings) -> Lanes:
    return Lanes(
        max_in_hand=settings.max_in_hand,
        max_in_hand_bytes=settings.max_in_hand_bytes,
        endpoint_max_in_flight=settings.endpoint_max_in_flight,
        first_in_flight=settings.breaker_timeouts,  # if all of them time out, that says enough
    )


def _breaker_policy(settings: Settings) -> BreakerPolicy:
    return BreakerPolicy(
        window_s=settings.breaker_window_s,
        min_attempts=settings.breaker_min_attempts,
        failure_ratio=settings.breaker_failure_ratio,
        timeouts=settings.breaker_timeouts,
        rest_s=settings.breaker_rest_s,
        longest_rest_s=settings.breaker_longest_rest_s,
    )


def _thresholds(settings: Settings) -> Thresholds:
    return Thresholds(
        failing_failures=settings.failing_after_failures,
        failing_s=settings.failing_after_s,
        disable_failures=settings.disable_after_failures,
        disable_s=settings.disable_after_s,
    )


def _times(settings: Settings) -> Times:
    times = Times(
        heartbeat_s=settings.heartbeat_s,
        renewal_s=settings.renewal_timeout_s,
        margin_s=settings.begin_margin_s,
        liveness_s=settings.liveness_s,
        wait_s=settings.max_wait_in_hand_s,
        longest_deadline_s=MAX_TIMEOUT_S,
        settle_s=settings.settle_allowance_s,
        claim_cap_s=settings.claim_cap_s,
    )
    problems = [*contradictions(times)]
    if settings.max_in_hand_bytes < settings.max_event_bytes:
        problems.append(Problem("HOOKHARE_MAX_IN_HAND_BYTES", "must be at least HOOKHARE_MAX_EVENT_BYTES"))
    if problems:
        raise ConfigurationError("; ".join(f"{problem.field} {problem.message}" for problem in problems))
    return times


def _allow_many_sockets() -> None:
    """One file descriptor for each POST under way: the usual soft limit of 1,024 is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _SOCKETS if hard == resource.RLIM_INFINITY else min(_SOCKETS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
