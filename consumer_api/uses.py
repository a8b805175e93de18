"""How often each key was used, and when last: counted here, written every few seconds for all keys in one statement.

A process that is killed loses what it has counted since; one that stops in order writes it.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from aiohttp import web

from infra.store import api_keys
from infra.store.store import Store
from schemas.errors import StoreError

log = structlog.get_logger(__name__)

PERIOD_S: Final = 5.0
LAST_WRITE_S: Final = 3.0  # a stop does not wait for a database that is away


class Uses:
    """The uses of keys that are not written yet. There are as many at most as keys in the database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._uses: dict[UUID, tuple[int, datetime]] = {}

    def count(self, key_id: UUID, at: datetime) -> None:
        times, _ = self._uses.get(key_id, (0, at))
        self._uses[key_id] = (times + 1, at)

    async def written(self, _: web.Application) -> AsyncIterator[None]:
        """Write them, from the application's start to its end."""
        stopping = asyncio.Event()
        task = asyncio.create_task(self._write_until(stopping))
        yield
        stopping.set()
        await asyncio.wait({task}, timeout=LAST_WRITE_S)
        if not task.done():  # it ends with its connection, when the store closes; asyncpg may not heed it before
            log.warning("api.uses_lost")
            task.cancel()
        else:
            task.result()

    async def _write_until(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await stopping.wait()
            await self._write()

    async def _write(self) -> None:
        """Write all there are; what the store does not take now is kept for the next time."""
        writing, self._uses = self._uses, {}
        if not writing:
            return
        try:
            async with self._store.transaction() as conn:
                await api_keys.add_uses(conn, writing)
        except StoreError as error:
            log.warning("api.uses_not_written", error=str(error))
            self._put_back(writing)

    def _put_back(self, uses: Mapping[UUID, tuple[int, datetime]]) -> None:
        for key_id, (times, at) in uses.items():
            more, later = self._uses.get(key_id, (0, at))
            self._uses[key_id] = (times + more, later)
