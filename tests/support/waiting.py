"""Waiting for a condition, with a deadline: never a sleep and a hope."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest


async def eventually(
    condition: Callable[[], Awaitable[bool]],
    explain: Callable[[], Awaitable[object]] | None = None,
    *,
    deadline_s: float = 10,
) -> None:
    """Wait for a condition that has to be asked for; fails with what `explain` says when the time is over."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    while not await condition():
        if loop.time() > end:
            told = await explain() if explain is not None else "the condition did not come true"
            pytest.fail(f"after {deadline_s} s: {told}")
        await asyncio.sleep(0.02)
