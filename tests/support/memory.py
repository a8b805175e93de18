"""How much memory a process takes while something goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil


class Watch:
    """The most that a process has taken on top of what it had at the beginning, looked at again and again."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before_bytes = self._most_bytes = self._now_bytes()

    @property
    def grown_bytes(self) -> int:
        return self._most_bytes - self._before_bytes

    def _now_bytes(self) -> int:
        taken: int = self._process.memory_info().rss
        return taken

    async def run(self) -> None:
        while True:
            self._most_bytes = max(self._most_bytes, self._now_bytes())
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watch_memory(pid: int) -> AsyncIterator[Watch]:
    """Look while the context is open."""
    watch = Watch(pid)
    looking = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        looking.cancel()
