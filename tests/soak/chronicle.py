"""What was done to an installation, and when: what the accounting explains duplicates by.

Times are those of the system's clock, which PostgreSQL's rows and the dispatchers' signatures show too.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    KILLED = "killed"  # of the process `pid`; a drain that could not commit is one too
    SILENT = "silent"  # the process `pid` was stopped, or, without a pid, nobody reached the database
    OTHER = "other"


@dataclass(slots=True)
class Episode:
    """`ended_at` is None while it goes on."""

    what: str
    kind: Kind
    begun_at: float
    ended_at: float | None = None
    pid: int | None = None


@dataclass(slots=True)
class Chronicle:
    """Everything in order, each told as it begins; `findings` are what may not happen whatever the fault."""

    tell: Callable[[str], None]
    begun_at: float = field(default_factory=time.time)
    episodes: list[Episode] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Count from now on."""
        self.begun_at = time.time()

    def note(self, what: str, kind: Kind = Kind.OTHER, *, pid: int | None = None) -> Episode:
        """Something that just happened."""
        now = time.time()
        one = Episode(what, kind, now, now, pid)
        self.episodes.append(one)
        self.tell(f"{now - self.begun_at:7.1f} s  {what}")
        return one

    @contextmanager
    def during(self, what: str, kind: Kind = Kind.OTHER, *, pid: int | None = None) -> Iterator[None]:
        """Something that goes on for as long as the context is open."""
        one = self.note(what, kind, pid=pid)
        one.ended_at = None
        try:
            yield
        finally:
            one.ended_at = time.time()

    def found(self, what: str) -> None:
        self.findings.append(what)
        self.tell(f"{time.time() - self.begun_at:7.1f} s  FOUND: {what}")

    def near(self, at: float, *, within_s: float = 10) -> list[str]:
        """What was going on around a moment, for a person."""
        return [
            f"{one.begun_at - self.begun_at:7.1f} to {(one.ended_at or at) - self.begun_at:.1f} s  {one.what}"
            for one in self.episodes
            if one.begun_at - within_s <= at <= (one.ended_at or at) + within_s
        ]
