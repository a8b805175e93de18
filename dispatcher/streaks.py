"""Streaks: endpoints that nothing is delivered to any more are told of, and in the end their subscriptions disabled.

A success ends a streak in the transaction that commits it, if nobody has the endpoint's row just now. If somebody has
it, maybe a dispatcher that stands still, the streak is ended a moment later. Failures are added up here and written
like that, too. In the settlement's, every dispatcher's group commit would wait for the row of an endpoint that fails,
and with it the outcomes of all others.

So a streak's count is a lower bound: failures are lost with their dispatcher, and an ending that comes late takes with
it what failed after its success. An ending may be lost like that, too, and would accuse an endpoint that is well: so
before a streak disables, the history is asked whether anything was delivered since it began.

Disabling waits for every admission under way, so it is not done in the settlement either. If the dispatcher dies before
it, the next failure of that subscription asks for it again.
"""

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import structlog

from dispatcher.core.streak import Failures, Judgement, Streak, Tally, Thresholds, judge
from infra.store import operational, streaks, subscriptions
from infra.store.store import Store
from infra.store.streaks import StreakRow, Target
from schemas.errors import StoreError
from schemas.ids import SUBSCRIPTION, public_id
from schemas.operational import OperationalType

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ending:
    """Why a subscription is to be disabled, and which streak is the reason, if one is."""

    reason: str
    failing_since: datetime | None = None


class Streaks:
    """Writes what it was told once in `period_s`, until `stop` is called and nothing is left."""

    def __init__(self, store: Store, thresholds: Thresholds, *, period_s: float) -> None:
        self._store = store
        self._thresholds = thresholds
        self._period_s = period_s
        self._ended: set[Target] = set()
        self._failures: dict[Target, Failures] = {}
        self._endings: dict[Target, _Ending] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()

    def observe(self, attempts: Tally[Target]) -> None:
        """Learn from attempts whose outcomes are committed. An endpoint that is well costs one look-up."""
        for target in attempts.delivered:
            self._failures.pop(target, None)
        for target, failures in attempts.failures.items():
            before = self._failures.get(target)
            self._failures[target] = failures if before is None else before.and_then(failures)
        if attempts.failures:
            self._wake.set()

    def end(self, delivered: Collection[Target]) -> None:
        """End the streaks of these: something was delivered, and the settlement found their rows taken."""
        if delivered:
            self._ended.update(delivered)
            self._wake.set()

    def gone(self, subscription: UUID, url: str, reason: str) -> None:
        """The endpoint asks for no more: disable its subscription."""
        self._endings[subscription, url] = _Ending(reason)
        self._wake.set()

    def stop(self) -> None:
        """End `run` once everything is written."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Write what has gathered; what comes meanwhile gathers for one period."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._ended:
                ended, self._ended = self._ended, set()
                await self._end(ended)
            if self._failures:
                failures, self._failures = self._failures, {}
                await self._count({target: one for target, one in failures.items() if target not in self._ended})
            endings, self._endings = self._endings, {}
            for (subscription, url), ending in endings.items():
                await self._disable(subscription, url, ending)
            if self._stopping.is_set() and not (self._ended or self._failures or self._endings):
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period_s):
                    await self._stopping.wait()

    async def _end(self, delivered: Collection[Target]) -> None:
        """End the streaks of these. Rows that somebody has are left for the next time; at the end, waited for."""
        stopping = self._stopping.is_set()
        left: Collection[Target]
        try:
            async with self._store.transaction() as connection:
                left = await end_streaks(connection, delivered, wait=stopping)
        except StoreError as error:
            log.warning("streaks.not_ended", subscriptions=len(delivered), error=str(error))
            left = () if stopping else delivered
        self.end(left)

    async def _count(self, failures: Mapping[Target, Failures]) -> None:
        try:
            async with self._store.transaction() as connection:
                rows = await streaks.count(connection, {target: one.number for target, one in failures.items()})
                told = [row for row in rows if await self._tell(connection, row, failures[row.id, row.url])]
        except StoreError as error:
            # Not tried again: if it was committed after all, the failures would count twice.
            log.warning("streaks.not_counted", subscriptions=len(failures), error=str(error))
            return
        for row in told:
            log.warning("subscription.failing", subscription_id=public_id(SUBSCRIPTION, row.id), failures=row.failures)
        for row in rows:
            if self._judge(row, failures[row.id, row.url]).disable:
                last = failures[row.id, row.url].last
                self._endings.setdefault((row.id, row.url), _Ending(_too_long(row, last), row.failing_since))

    def _judge(self, row: StreakRow, failures: Failures) -> Judgement:
        return judge(Streak(row.failures, row.age_s, row.told), self._thresholds, ordinary=failures.ordinary)

    async def _tell(self, connection: asyncpg.Connection, row: StreakRow, failures: Failures) -> bool:
        """Tell of a streak that has become long enough, in the transaction that counts; once for each streak."""
        tell = self._judge(row, failures).tell
        if tell:
            await streaks.mark_told(connection, row.id)
            await operational.tell(connection, OperationalType.FAILING, row.id)
        return tell

    async def _disable(self, subscription: UUID, url: str, ending: _Ending) -> None:
        try:
            async with self._store.transaction() as connection:
                since = ending.failing_since
                if since is not None and await streaks.delivered_since(connection, subscription, since):
                    await end_streaks(connection, [(subscription, url)], wait=True)
                    return
                disabled = await subscriptions.disable(
                    connection, subscription, url=url, reason=ending.reason, failing_since=since
                )
        except StoreError as error:
            log.warning("subscription.not_disabled", subscription_id=str(subscription), error=str(error))
        else:
            if disabled:
                shown = public_id(SUBSCRIPTION, subscription)
                log.warning("subscription.disabled", subscription_id=shown, reason=ending.reason)


async def end_streaks(
    connection: asyncpg.Connection, delivered: Collection[Target], *, wait: bool = False
) -> Collection[Target]:
    """End the streaks of these that have one, and tell of those that were told of; those whose rows somebody has are
    waited for, or left and returned."""
    if not delivered or not (failing := await streaks.failing_among(connection, {key for key, _ in delivered})):
        return ()
    locked = await streaks.lock(connection, failing, wait=wait)
    for row in await streaks.end(connection, [target for target in delivered if target[0] in locked]):
        if row.told:
            streak = operational.streak_data(row.failing_since, row.failures)
            await operational.tell(connection, OperationalType.RECOVERED, row.id, streak)
            log.info("subscription.recovered", subscription_id=public_id(SUBSCRIPTION, row.id), failures=row.failures)
    return [target for target in delivered if target[0] in failing - locked]


def _too_long(row: StreakRow, last: str) -> str:
    return (
        f"every attempt has failed since {row.failing_since:%Y-%m-%dT%H:%M:%SZ}, {row.failures} of them; "
        f"the last: {last}"
    )
