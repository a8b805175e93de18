"""Messages and answers that kill the process which handles them, and a fleet that is started again whenever it dies."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final

import dispatcher.admission
from dispatcher.admission import Admission
from dispatcher.incoming import Incoming
from schemas.events import read_event
from schemas.messages import Message
from tests.support.accounting import Accounting
from tests.support.system import DispatcherProcess, System

LETHAL: Final = b"lethal"  # what is in the body of a message that kills


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_reading() -> None:
    """From now on, this process dies when it reads a lethal message."""

    def read(message: Message, **options: Any) -> object:
        if LETHAL in message.body:
            _die()
        return read_event(message, **options)

    dispatcher.admission.read_event = read  # type: ignore[attr-defined, assignment]


def dies_admitting() -> None:
    """From now on, this process dies in the transaction that admits a lethal event."""
    store_events = Admission._store_events

    async def store(self: Admission, connection: Any, new: Sequence[Incoming]) -> None:
        if any(LETHAL in one.event.data for one in new):
            _die()
        await store_events(self, connection, new)

    Admission._store_events = store  # type: ignore[method-assign]


class Fleet:
    """Dispatchers, each started again whenever it dies. `deaths` counts; each is told to the books as a fault."""

    def __init__(
        self, system: System, log: Path, books: Accounting, prepare: Callable[[], None], changes: dict[str, Any]
    ) -> None:
        self.deaths = 0
        self._system = system
        self._log = log
        self._books = books
        self._prepare = prepare
        self._changes = changes

    async def keep_alive(self, number: int) -> None:
        """One of its dispatchers, until it is cancelled."""
        log = self._log.with_suffix(f".{number}.log")
        while True:
            one = DispatcherProcess(self._system, log, prepare=self._prepare, **self._changes)
            since_s = monotonic()
            try:
                await one.start(may_die=True)
                code = await one.wait(deadline_s=600)
            finally:
                one.kill()
                await one.wait()
            assert code == -signal.SIGKILL, f"it ended with {code}"
            self.deaths += 1
            self._books.blame("a death", since_s=since_s, until_s=monotonic())


@asynccontextmanager
async def fleet(
    system: System,
    log: Path,
    books: Accounting,
    prepare: Callable[[], None],
    *,
    dispatchers: int,
    **changes: object,
) -> AsyncIterator[Fleet]:
    """A fleet in processes that `prepare` was called in, kept alive while the context is open."""
    whole = Fleet(system, log, books, prepare, changes)
    tasks = [asyncio.create_task(whole.keep_alive(number)) for number in range(dispatchers)]
    try:
        yield whole
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
    assert not errors, errors
