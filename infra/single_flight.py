"""What several ask for at once is made once, and all get it."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from infra.tasks import end_task

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SingleFlight(Generic[Key, Value]):
    """Work under way, by key. It is nobody's own: who asked for it first may be canceled, and it goes on.

    So the work has to have an end of its own. What is made is not kept.
    """

    __slots__ = ("_under_way",)

    def __init__(self) -> None:
        self._under_way: dict[Key, asyncio.Task[Value]] = {}

    async def get(self, key: Key, make: Callable[[], Coroutine[Any, Any, Value]]) -> tuple[Value, bool]:
        """What `make` returns or raises, and whether it was begun for this call."""
        task = self._under_way.get(key)
        # One that has ended may stand here until the loop comes to `_ended`. Who asks by then would get it without a
        # wait: for ever, if it asks in a loop.
        is_first = task is None or task.done()
        if task is None or is_first:
            task = asyncio.create_task(make())
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task), is_first

    def _ended(self, key: Key, task: asyncio.Task[Value]) -> None:
        if self._under_way.get(key) is task:
            del self._under_way[key]
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits any more

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in list(self._under_way.values()):
            task.cancel()
        for task in list(self._under_way.values()):
            await end_task(task)
