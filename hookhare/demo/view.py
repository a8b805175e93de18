"""The demo's table of deliveries: live on a terminal, and otherwise a plain line for each change."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from hookhare.demo.receivers import Receiver

_WAITING = ("pending", "held", "retrying")


@dataclass(slots=True)
class Row:
    """What is known of one receiver's deliveries."""

    receiver: Receiver
    expected: int
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def waiting(self) -> int:
        return sum(self.statuses[status] for status in _WAITING)

    def cells(self) -> Mapping[str, str]:
        return {
            "receiver": self.receiver.name,
            "expects": str(self.expected),
            "POSTs": str(sum(self.receiver.requests.values())),
            "waiting": str(self.waiting),
            "dead": str(self.statuses["dead"]),
            "delivered": str(self.statuses["delivered"]),
            "verified": str(len(self.receiver.taken)),
            "answers": self.receiver.trouble.value,
        }


class View:
    """Shows rows as they change, from `__enter__` to `__exit__`."""

    def __init__(self, console: Console, rows: list[Row]) -> None:
        self._console = console
        self._rows = rows
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown: list[str] = []

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self) -> None:
        """Draw the rows as they are now."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        lines = [self._line(row) for row in self._rows]
        for number, line in enumerate(lines):
            if line not in self._shown[number : number + 1]:
                self._console.print(line, highlight=False)
        self._shown = lines

    def _table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for number, name in enumerate(self._rows[0].cells()):
            table.add_column(name, justify="right" if 1 <= number <= 6 else "left")
        for row in self._rows:
            done = row.statuses["delivered"] == row.expected
            table.add_row(*row.cells().values(), style="green" if done else "red" if row.statuses["dead"] else "yellow")
        return table

    @staticmethod
    def _line(row: Row) -> str:
        cells = row.cells()
        counts = ", ".join(f"{cells[name]} {name}" for name in ("POSTs", "waiting", "dead", "delivered", "verified"))
        return f"  {row.receiver.name:<8} expects {row.expected:>2}: {counts}"
