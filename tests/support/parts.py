"""The parts of a dispatcher in the test's own process, to be looked at: what it has in hand, its heart, its tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from dispatcher import bootstrap
from dispatcher.heartbeat import Heartbeat
from dispatcher.hints import Hints
from dispatcher.lanes import Lanes
from dispatcher.settlement import Settlement

_PARTS: Final = ("Heartbeat", "Hints", "Lanes", "Settlement")


@dataclass(slots=True)
class Parts:
    """Of the dispatcher that was opened last."""

    made: dict[str, Any] = field(default_factory=dict)

    @property
    def heartbeat(self) -> Heartbeat:
        part: Heartbeat = self.made["Heartbeat"]
        return part

    @property
    def hints(self) -> Hints:
        part: Hints = self.made["Hints"]
        return part

    @property
    def lanes(self) -> Lanes:
        part: Lanes = self.made["Lanes"]
        return part

    @property
    def settlement(self) -> Settlement:
        part: Settlement = self.made["Settlement"]
        return part


@contextmanager
def parts_in_sight() -> Iterator[Parts]:
    """Know the parts of the dispatchers that are opened while the context is open."""
    parts = Parts()

    def seen(name: str, kind: Any) -> Any:
        def make(*arguments: Any, **named: Any) -> Any:
            parts.made[name] = kind(*arguments, **named)
            return parts.made[name]

        return make

    with pytest.MonkeyPatch.context() as patch:
        for name in _PARTS:
            patch.setattr(bootstrap, name, seen(name, getattr(bootstrap, name)))
        yield parts
