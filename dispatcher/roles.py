"""A role: what one dispatcher of all does at a time. Whoever dies with it loses it to the next one, as with a lease."""

import asyncio
from enum import StrEnum

import asyncpg
import structlog

from dispatcher.heartbeat import Heartbeat
from infra.store import statements as sql
from infra.store.store import Store
from schemas.errors import StoreError

log = structlog.get_logger(__name__)


class Name(StrEnum):
    """The roles there are: rows of the table, made by a migration."""

    ADMISSION = "admission"


class RoleLost(Exception):
    """It is another dispatcher's by now, or nobody's."""


class Role:
    """One role, as one dispatcher sees it. It looks after it once in the heartbeat's period."""

    def __init__(self, name: Name, store: Store, heartbeat: Heartbeat) -> None:
        self._name = name
        self._store = store
        self._heartbeat = heartbeat

    async def take(self) -> None:
        """Wait until it is ours."""
        times = self._heartbeat.times
        while True:
            if await self._ask(sql.HAS_ROLE) or await self._ask(sql.TAKE_ROLE, times.liveness_s - times.margin_s):
                log.info("role.taken", role=self._name)
                return
            await asyncio.sleep(times.heartbeat_s)

    async def watch(self) -> None:
        """Until it is lost; then raises RoleLost. While the database is away nobody can take it."""
        while True:
            if await self._ask(sql.HAS_ROLE) is False:
                raise RoleLost
            await asyncio.sleep(self._heartbeat.times.heartbeat_s)

    async def share(self, connection: asyncpg.Connection) -> None:
        """Keep it until the caller's transaction ends. Raises RoleLost if it is not ours."""
        if not await connection.fetchval(sql.SHARE_ROLE, self._heartbeat.incarnation, self._name):
            raise RoleLost

    async def give_up(self) -> None:
        """Let the next one have it. Best effort: it ends with the heartbeat."""
        await self._ask(sql.GIVE_UP_ROLE)

    async def _ask(self, statement: str, *more: object) -> bool | None:
        """Whether it is so; None when the database does not say."""
        try:
            async with self._store.connection() as connection:
                return bool(await connection.fetchval(statement, self._heartbeat.incarnation, *more, self._name))
        except StoreError as error:
            log.warning("role.unknown", role=self._name, error=str(error))
            return None
