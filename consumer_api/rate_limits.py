"""Rate limits of keys, over all processes of the API.

Each process takes a twentieth of a key's limit from the store at a time (`infra/store/allowances.py`), so one request
in so many waits for a statement. The bound of the error: a key is never answered more often in a window than its limit
says; it may be refused early, by what other processes have taken and not used, a twentieth for each of them at most.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import ceil
from time import monotonic
from typing import Final
from uuid import UUID

from aiohttp import web

from consumer_api.context import Standing
from infra.single_flight import SingleFlight
from infra.store import allowances
from infra.store.allowances import Taken
from infra.store.store import Store

_SHARE: Final = 20
_MAX_KEYS: Final = 10_000  # remembered; of one that is forgotten, what was taken is lost


@dataclass(slots=True)
class _Window:
    """What this process has of a key's window: `left` requests to make, and what the store had when it last looked."""

    limit: int
    left: int
    rest: int
    ends_at_s: float  # by the monotonic clock; never later than by the database's

    def standing(self, now_s: float) -> Standing:
        return Standing(self.limit, self.left + self.rest, max(1, ceil(self.ends_at_s - now_s)))


class RateLimits:
    """Counts the requests of this process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._windows: OrderedDict[UUID, _Window] = OrderedDict()
        self._taking: SingleFlight[tuple[UUID, int], None] = SingleFlight()

    async def closed(self, _: web.Application) -> AsyncIterator[None]:
        """Whoever asked is gone when the application ends."""
        yield
        await self._taking.close()

    async def count(self, key_id: UUID, limit: int) -> tuple[bool, Standing]:
        """Whether the key may make one more request now, and how it stands then. Raises StoreUnavailable."""
        while True:
            now_s = monotonic()
            window = self._windows.get(key_id)
            if window is not None and window.limit == limit and window.ends_at_s > now_s:
                if window.left > 0:
                    window.left -= 1
                    return True, window.standing(now_s)
                if window.rest == 0:
                    return False, window.standing(now_s)
            # Together: who comes meanwhile waits for the same statement, not for as many.
            await self._taking.get((key_id, limit), lambda: self._take(key_id, limit))

    async def _take(self, key_id: UUID, limit: int) -> None:
        asked_at_s = monotonic()
        async with self._store.connection() as conn:
            taken = await allowances.take(conn, key_id, max(1, limit // _SHARE), limit=limit)
        self._windows[key_id] = _joined(self._windows.get(key_id), taken, limit, asked_at_s)
        self._windows.move_to_end(key_id)
        if len(self._windows) > _MAX_KEYS:
            self._windows.popitem(last=False)


def _joined(had: _Window | None, taken: Taken, limit: int, asked_at_s: float) -> _Window:
    """A window with what was taken, and with what was left of the same one; a changed limit begins with nothing."""
    same = had is not None and had.limit == limit and had.ends_at_s > asked_at_s
    left = had.left if same and had is not None else 0
    return _Window(limit, left + taken.granted, taken.rest, asked_at_s + taken.left_s)
