"""Cancelling, over a driver that loses cancellations.

asyncpg may answer a cancelled task with an error of its own in place of the CancelledError: it asks the server to
stop the statement, waits for that, and what it raises then says that the wait took too long, or that the connection
broke. Whoever catches such errors in a loop, in order to go on, would never end.
"""

import asyncio
from typing import Any

_AGAIN_S = 0.2


def cancellations() -> int:
    """How many times the current task was asked to end. A larger number than before means: end now."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended. Raises what it ended with, unless that is its cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_S)
    if not task.cancelled():
        task.result()
