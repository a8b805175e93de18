"""A dispatcher's heartbeat: the row by which the others know that it lives, and by which it knows itself.

An incarnation is new at every start of a process. It is kept through a lapse: after a pause or a time without the
database the dispatcher renews it, and what it had claimed before and not begun is held (`lapsed_since`), because
the others may have taken it over meanwhile.

The heart has a connection of its own. In the pool it would wait for others, and for asyncpg to tidy up a statement
that was cut off: a single dead connection could have a healthy dispatcher taken for dead.
"""

import asyncio
import os
import socket
from typing import Self
from uuid import UUID

import asyncpg
import structlog
from uuid_utils.compat import uuid7

from dispatcher.clock import boot_s
from dispatcher.core.liveness import Times, is_fresh
from infra.store.statements import RENEW_HEARTBEAT, RETIRE_DISPATCHER
from infra.store.store import Store, store_errors
from schemas.errors import StoreError

log = structlog.get_logger(__name__)


class Heartbeat:
    """Renews the row of one incarnation for as long as `run` runs."""

    def __init__(self, store: Store, times: Times) -> None:
        self.incarnation: UUID = uuid7()
        self.times = times
        self._store = store
        self._renewed_s = float("-inf")
        self._lapsed_s = float("-inf")
        self._connection: asyncpg.Connection | None = None

    async def start(self) -> Self:
        """Make the row; raises StoreError. Claims are possible from here on."""
        await self._renew()
        return self

    def renewal_age_s(self) -> float:
        """Seconds since the last renewal, from before its statement was sent."""
        return boot_s() - self._renewed_s

    def is_fresh(self) -> bool:
        """Whether nobody can take this dispatcher for dead yet."""
        return is_fresh(self.times, renewal_age_s=self.renewal_age_s())

    def lapsed_since(self, moment_s: float) -> bool:
        """Whether, at any time since `moment_s` (boot time), the others could have taken this dispatcher for dead."""
        return moment_s <= self._lapsed_s

    async def run(self) -> None:
        """Renew for ever. A renewal that fails is logged and tried again a period later."""
        while True:
            await asyncio.sleep(self.times.heartbeat_s)
            lapsed = not self.is_fresh()
            try:
                await self._renew()
            except StoreError as error:
                log.warning("heartbeat.failed", error=str(error), age_s=round(self.renewal_age_s(), 3))
            else:
                if lapsed:
                    log.warning("heartbeat.resumed", incarnation=str(self.incarnation))

    async def retire(self) -> None:
        """Take the row away, so that nobody waits for the liveness time. Best effort: it would only lapse."""
        try:
            await self._execute(RETIRE_DISPATCHER, self.incarnation)
        except StoreError as error:
            log.warning("heartbeat.not_retired", error=str(error))
        self._drop_connection()

    async def _renew(self) -> None:
        sent_s = boot_s()
        await self._execute(
            RENEW_HEARTBEAT, self.incarnation, socket.gethostname(), os.getpid(), 3 * self.times.heartbeat_s
        )
        if not self.is_fresh():
            self._lapsed_s = boot_s()
        self._renewed_s = sent_s

    async def _execute(self, statement: str, *arguments: object) -> None:
        """Connecting, sending and the answer within the renewal's time, or StoreUnavailable and a new connection."""
        try:
            with store_errors():
                async with asyncio.timeout(self.times.renewal_s):
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await self._store.connect()
                    await self._connection.execute(statement, *arguments)
        except BaseException:
            self._drop_connection()
            raise

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
