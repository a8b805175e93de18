"""How a command runs: its event loop, its signals, and its errors as lines for a person instead of a traceback.

SIGTERM and SIGINT stop a server that is up: it drains and the command exits with 0. A second one, or one that comes
before the server is up, cancels what is under way: the command still closes what it opened, and exits with 1.
"""

import asyncio
import errno
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from schemas.errors import BrokerUnavailable, ConfigurationError, HookhareError, StoreUnavailable

T = TypeVar("T")

_BROKER_SETTING = "HOOKHARE_BROKER_URL"

_ADVICE: Mapping[type[HookhareError], str] = {
    StoreUnavailable: "; is HOOKHARE_DATABASE_URL right, and the database up?",
    BrokerUnavailable: f"; is {_BROKER_SETTING} right, and the broker up?",
}


def run(main: Callable[[], Coroutine[Any, Any, int | None]], *, broker_option: str | None = None) -> int:
    """Run a command to its end and return its exit code. Errors raised on purpose become lines on stderr.

    `broker_option` is the option that named the broker, if one did: errors then speak of it.
    """
    if not logging.getLogger().handlers:
        # Until a server configures its logs: else Python prints libraries' warnings between our lines.
        logging.getLogger().addHandler(logging.NullHandler())
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(main()) or 0
    except asyncio.CancelledError:
        print("hookhare: stopped before it was done", file=sys.stderr)
        return 1
    except BaseException as error:  # what is not ours to explain is raised again
        lines = explain(error)
        if lines is None:
            raise
        for line in lines:
            print(f"hookhare: {line.replace(_BROKER_SETTING, broker_option or _BROKER_SETTING)}", file=sys.stderr)
        return 1


async def serve(
    server: AbstractAsyncContextManager[T],
    *,
    announce: Callable[[T], None] | None = None,
    failed: Callable[[T], Awaitable[None]] | None = None,
) -> None:
    """Keep `server` open until a signal comes, or what `failed` gives ends or raises; then close it: it drains."""
    with _signals() as stop:
        async with server as running:
            if announce is not None:
                announce(running)
            stop.up = True
            collect_less_garbage()
            await _first_of(stop.event.wait(), *([_finished(failed(running))] if failed is not None else []))


def collect_less_garbage() -> None:
    """Let the collector pass over what a server stands on, which stays, and look at the rest less often.

    Nearly all that a delivery leaves is freed by its reference count; what is left in cycles, one object of ten
    deliveries, waits until 50,000 objects have gathered. That is more than a batch of 500 leaves until it is done: with
    20,000 each batch was looked at, 7 ms each time and 5 % of the CPU. A dispatcher's CPU for a delivery fell by a
    quarter (`tests.bench.throughput`), half of that by the first.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


class _Stop:
    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.event = asyncio.Event()
        self.up = False
        self._task = task

    def ask(self) -> None:
        if self.up and not self.event.is_set():
            self.event.set()
        else:
            self._task.cancel()


@contextmanager
def _signals() -> Iterator[_Stop]:
    task = asyncio.current_task()
    assert task is not None
    stop = _Stop(task)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _finished(awaited: Awaitable[None]) -> None:
    # Shielded, because what is awaited belongs to the server: it is not ours to cancel.
    await asyncio.shield(awaited)


async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def explain(error: BaseException) -> list[str] | None:
    """What went wrong in a line each, or None when it is not an error that a person can mend (a bug)."""
    if isinstance(error, BaseExceptionGroup):
        lines: list[str] = []
        for inner in error.exceptions:
            explained = explain(inner)
            if explained is None:
                return None
            lines += [line for line in explained if line not in lines]
        return lines
    if isinstance(error, KeyboardInterrupt):
        return ["stopped"]
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return [f"{error.strerror or error}: set HOOKHARE_API_PORT or HOOKHARE_DISPATCHER_PORT to a free port, or 0"]
    if isinstance(error, ConfigurationError):
        return [str(error)]  # names the setting, which says more than the error's name
    if isinstance(error, HookhareError):
        return [f"{type(error).__name__}: {error}{_ADVICE.get(type(error), '')}"]
    return None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:  # not made for Windows
        return None
    return uvloop.new_event_loop
