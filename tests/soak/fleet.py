"""The dispatchers of a soak: each slot has one, and another one as soon as that has ended."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson
import psutil

from tests.soak.chronicle import Chronicle, Kind
from tests.soak.schedule import SLOTS
from tests.support.points import Point
from tests.support.system import DispatcherProcess, System
from tests.support.waiting import eventually

# What a dispatcher may take on top of what it had when it had started: the 16 MB of event data that the settings let
# it have in hand, twice over for messages unacked and bodies being sent, and as much again for what libraries keep.
MEMORY_GROWTH_BYTES: Final = 96 * 1024 * 1024
_START_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.03
_TAIL: Final = 1500


@dataclass(frozen=True, slots=True)
class Armed:
    """What the next dispatcher of a slot will do to itself; a stopped one goes on after `for_s`."""

    point: Point
    for_s: float | None = None


@dataclass(slots=True, eq=False)
class _Slot:
    number: int
    armed: Armed | None = None
    process: DispatcherProcess | None = None
    ending: str | None = None  # why the process may end: we asked for it
    memory_bytes: int = 0  # when it had started


@dataclass(slots=True, eq=False)
class Fleet:
    """Open between `async with fleet.running()`."""

    system: System
    folder: Path
    chronicle: Chronicle
    grown_bytes: int = 0  # the most that any dispatcher has grown by
    started: int = 0
    _slots: Sequence[_Slot] = field(default_factory=lambda: [_Slot(number) for number in range(SLOTS)])
    _closing: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Entered when all have started. On the way out every dispatcher is drained, and has to end in order."""
        tasks = [asyncio.create_task(self._keep_up(slot)) for slot in self._slots]
        try:
            await eventually(self._all_started, deadline_s=_START_S)
            yield
            self._closing = True
            for slot in self._slots:
                self.drain(slot.number)
            await asyncio.wait_for(asyncio.gather(*tasks), 60)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for slot in self._slots:
                if slot.process is not None:
                    slot.process.resume()
                    slot.process.kill()

    async def _all_started(self) -> bool:
        return all(slot.memory_bytes for slot in self._slots)

    def kill(self, number: int, then: Armed | None = None) -> None:
        slot = self._slots[number]
        slot.armed = then
        if slot.process is not None and slot.process.running:
            slot.ending = "killed"
            slot.process.kill()

    def drain(self, number: int) -> None:
        slot = self._slots[number]
        if slot.process is not None and slot.process.running:
            slot.ending = slot.ending or "drained"
            os.kill(slot.process.pid, signal.SIGTERM)

    async def pause(self, number: int, for_s: float) -> None:
        process = self._slots[number].process
        if process is not None and process.running:
            with self.chronicle.during(f"  dispatcher {number} stands still", Kind.SILENT, pid=process.pid):
                process.pause()
                await asyncio.sleep(for_s)
                process.resume()

    async def _keep_up(self, slot: _Slot) -> None:
        while not self._closing:
            armed, slot.armed, slot.ending = slot.armed, None, None
            fault = signal.SIGKILL if armed is None or armed.for_s is None else signal.SIGSTOP
            log = self.folder / f"dispatcher-{slot.number}.log"
            slot.process = process = DispatcherProcess(self.system, log, at=[armed.point] if armed else [], fault=fault)
            begins = log.stat().st_size if log.exists() else 0
            started = await self._start(process)
            slot.memory_bytes = _memory_bytes(process)
            await self._watch(slot, process, armed)
            code = await process.wait()
            told = log.read_bytes()[begins:].decode(errors="replace")
            self._ended(slot, process, armed, code, told, started=started)
            if code > 0:
                await asyncio.sleep(0.5)  # as any supervisor does: the servers it needs may be away

    async def _start(self, process: DispatcherProcess) -> bool:
        self.started += 1
        with suppress(AssertionError):  # it has ended already
            await process.start()
            return process.running
        return False

    async def _watch(self, slot: _Slot, process: DispatcherProcess, armed: Armed | None) -> None:
        """Until it ends. It may stop itself at its point; a while later it goes on."""
        looks = 0
        while process.running:
            if armed is not None and armed.for_s is not None and _is_stopped(process):
                what = f"  dispatcher {slot.number} stands still {armed.point}"
                with self.chronicle.during(what, Kind.SILENT, pid=process.pid):
                    await asyncio.sleep(armed.for_s)
                    process.resume()
                armed = None
            if looks % 30 == 0:
                self.grown_bytes = max(self.grown_bytes, _memory_bytes(process) - slot.memory_bytes)
            looks += 1
            await asyncio.sleep(_LOOK_EVERY_S)

    def _ended(
        self, slot: _Slot, process: DispatcherProcess, armed: Armed | None, code: int, told: str, *, started: bool
    ) -> None:
        if code == -signal.SIGKILL:
            by = "us" if slot.ending else f"itself, {armed.point}" if armed else "nobody"
            self.chronicle.note(f"  dispatcher {slot.number} was killed by {by}", Kind.KILLED, pid=process.pid)
            if by == "nobody":
                self.chronicle.found(f"dispatcher {slot.number} was killed by a stranger: is there memory enough?")
        elif code == 0 and slot.ending:
            # What it could not commit because the database was away is lost with it, as the design says.
            kind = Kind.KILLED if "dispatcher.not_settled" in told else Kind.OTHER
            self.chronicle.note(f"  dispatcher {slot.number} was drained", kind, pid=process.pid)
        elif started:
            self.chronicle.found(f"dispatcher {slot.number} ended by itself ({code}): {told[-_TAIL:]}")
        for crash in _crashes(told):
            self.chronicle.found(f"dispatcher {slot.number} told of a crash: {crash}")


def _memory_bytes(process: DispatcherProcess) -> int:
    with suppress(psutil.Error):
        return int(psutil.Process(process.pid).memory_info().rss)
    return 0


def _is_stopped(process: DispatcherProcess) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    return False


def _crashes(told: str) -> Iterator[str]:
    """Errors of ours with a traceback, and tracebacks that nobody caught. A library's about a lost wire is neither."""
    for line in told.splitlines():
        if not line.startswith("{"):
            if line.startswith("Traceback"):
                yield _shortened(told[told.index(line) :])
            continue
        entry = orjson.loads(line)
        if (
            entry["level"] == "error"
            and "exception" in entry
            and not entry["logger"].startswith(("aiormq", "aio_pika"))
        ):
            yield _shortened(line)


def _shortened(text: str) -> str:
    """What it is about, and what was raised in the end."""
    return text if len(text) <= _TAIL else f"{text[: _TAIL // 3]} … {text[-_TAIL // 3 * 2 :]}"
