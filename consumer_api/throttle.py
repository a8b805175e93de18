"""Wrong keys from one address: after so many a minute, 429 without a look-up.

A key that this process has let in before is looked up all the same, so one bad client does not take the API from the
others behind its address; a key that comes for the first time has to wait until the address may try again. What is
counted is of this process alone.
"""

from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from time import monotonic
from typing import Final, TypeVar

from consumer_api.addresses import neighbourhood
from infra.store.api_keys import digest, is_key

Key = TypeVar("Key")
Value = TypeVar("Value")

MAX_ADDRESSES: Final = 10_000
MAX_KEYS: Final = 10_000


class Throttle:
    """Tries that addresses have left: a bucket of `per_min`, which fills again in a minute. Bounded: of too many
    addresses or keys, those that were not seen for the longest time are forgotten.
    """

    def __init__(self, per_min: int, clock: Callable[[], float] = monotonic) -> None:
        self._per_min = per_min
        self._clock = clock
        self._tries: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how many, as of when
        self._known: OrderedDict[bytes, None] = OrderedDict()  # hashes of keys that were let in

    def wait_s(self, address: str, key: str) -> int | None:
        """None when a key from there is looked up; else how many seconds it has to wait."""
        left = self._left(neighbourhood(address))
        if left >= 1 or (is_key(key) and digest(key) in self._known):
            return None
        return max(1, ceil((1 - left) * 60 / self._per_min))

    def failed(self, address: str, key: str) -> None:
        """The key was none."""
        if is_key(key):
            self._known.pop(digest(key), None)
        where = neighbourhood(address)
        self._tries[where] = max(0.0, self._left(where) - 1), self._clock()
        _keep(self._tries, where, MAX_ADDRESSES)

    def passed(self, key: str) -> None:
        """The key was let in."""
        hashed = digest(key)
        self._known[hashed] = None
        _keep(self._known, hashed, MAX_KEYS)

    def _left(self, where: str) -> float:
        left, since_s = self._tries.get(where, (float(self._per_min), self._clock()))
        return min(float(self._per_min), left + (self._clock() - since_s) * self._per_min / 60)


def _keep(kept: OrderedDict[Key, Value], newest: Key, most: int) -> None:
    kept.move_to_end(newest)
    if len(kept) > most:
        kept.popitem(last=False)
