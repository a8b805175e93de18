"""The catalogue of event types in memory, and what it says of an event.

The version in the database says whether this is current, as it does of the subscriptions (`dispatcher/index.py`).
Schemas are compiled when an event first asks for one, and the ones used last are kept.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from typing import Final, Literal

import asyncpg
import structlog

from infra.settings import Settings
from schemas.errors import InvalidInput, Problem
from schemas.event_schemas import EventSchema
from schemas.events import Event
from schemas.fields import is_operational

log = structlog.get_logger(__name__)

MAX_COMPILED_BYTES: Final = 134_217_728  # of compiled schemas in one process, about: some thousands of usual ones
_TIMES_ITS_TEXT: Final = 40  # what a compiled schema takes at most, measured
_BYTES_OF_A_PATTERN: Final = 131_072
_AT_ONCE_S: Final = 0.01  # of checks before others may run

_VERSION: Final = "SELECT version FROM subscription_version"
_CHANGED: Final = """
SELECT name, newest, deleted_at,
       ARRAY(SELECT number FROM event_type_versions WHERE event_type_id = event_types.id ORDER BY number) AS numbers,
       ARRAY(SELECT schema FROM event_type_versions WHERE event_type_id = event_types.id ORDER BY number) AS schemas
FROM event_types WHERE version > $1 ORDER BY version
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the catalogue says of an event that it has something against.

    `refused`: it is not taken. `unknown`: because there is no such type, not because of its data.
    """

    problem: Problem
    refused: bool
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """`verdicts` on the first `looked_at` of some events, by their place; most have none."""

    looked_at: int
    verdicts: dict[int, Verdict]


@dataclass(frozen=True, slots=True)
class _Type:
    newest: int | None
    schemas: Mapping[int, bytes] = field(repr=False)


class CompiledSchemas:
    """The schemas that were used last, compiled: as many as take about `max_bytes`. Compiling one takes up to 70 ms."""

    def __init__(self, max_bytes: int) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._known: OrderedDict[bytes, EventSchema | InvalidInput] = OrderedDict()

    def of(self, text: bytes) -> EventSchema | InvalidInput:
        """The schema, or what is wrong with it."""
        if (schema := self._known.get(text)) is not None:
            self._known.move_to_end(text)
            return schema
        try:
            schema = EventSchema(text)
        except InvalidInput as error:
            schema = error
        self._known[text] = schema
        self.size_bytes += _about_bytes(text, schema)
        while self.size_bytes > self._max_bytes and len(self._known) > 1:
            self.size_bytes -= _about_bytes(*self._known.popitem(last=False))
        return schema


def _about_bytes(text: bytes, schema: EventSchema | InvalidInput) -> int:
    patterns = 0 if isinstance(schema, InvalidInput) else schema.weight.expressions
    return _TIMES_ITS_TEXT * len(text) + _BYTES_OF_A_PATTERN * patterns


class Catalogue:
    """Every type with its schemas. `refresh` before use; then all is in memory."""

    def __init__(self, settings: Settings) -> None:
        self.version = -1
        self._mode: Literal["refuse", "warn", "off"] = settings.event_schema_mode
        self._refuses_unknown = settings.unknown_event_types == "refuse"
        self._types: dict[str, _Type] = {}
        self._compiled = CompiledSchemas(MAX_COMPILED_BYTES)
        self._refreshing = asyncio.Lock()

    @property
    def asked(self) -> bool:
        """Whether there is anything to ask it, as it is set."""
        return self._mode != "off" or self._refuses_unknown

    @property
    def silent(self) -> bool:
        """Whether it has nothing to say of any event."""
        return not (self._types or self._refuses_unknown)

    async def refresh(self, conn: asyncpg.Connection) -> None:
        """Read what has changed, if anything has. One small statement when nothing has."""
        version = await conn.fetchval(_VERSION)
        if version <= self.version:
            return
        async with self._refreshing:  # an older answer must not be applied over a newer one
            for row in await conn.fetch(_CHANGED, self.version):
                if row["deleted_at"] is not None:
                    self._types.pop(row["name"], None)
                else:
                    schemas = dict(zip(row["numbers"], row["schemas"], strict=True))
                    self._types[row["name"]] = _Type(row["newest"], schemas)
            self.version = max(self.version, version)

    async def judge(self, events: Sequence[Event], *, within_s: float = inf) -> Judged:
        """What it has against each of them. Others may run meanwhile.

        Once its checks have taken `within_s` it leaves the rest; the first event is always looked at.
        """
        if self.silent:
            return Judged(len(events), {})
        found: dict[int, Verdict] = {}
        spent_s = since_s = 0.0
        for place, event in enumerate(events):
            if event.type in self._types:
                if place and spent_s >= within_s:
                    return Judged(place, found)
                if since_s >= _AT_ONCE_S:
                    await asyncio.sleep(0)
                    since_s = 0.0
            began_s = perf_counter()
            if (verdict := self.verdict(event)) is not None:
                found[place] = verdict
            took_s = perf_counter() - began_s
            spent_s += took_s
            since_s += took_s
        return Judged(len(events), found)

    def verdict(self, event: Event) -> Verdict | None:
        """What it has against an event, None for nothing. Its own events Hookhare does not check."""
        known = self._types.get(event.type)
        if known is None:
            if not self._refuses_unknown or is_operational(event.type):
                return None
            return Verdict(Problem("type", "is not in the catalogue of event types"), refused=True, unknown=True)
        if self._mode == "off" or known.newest is None:
            return None
        problem = self._problem(event, known, known.newest)
        return None if problem is None else Verdict(problem, refused=self._mode == "refuse")

    def _problem(self, event: Event, known: _Type, newest: int) -> Problem | None:
        number = newest if event.schema_version is None else event.schema_version
        text = known.schemas.get(number)
        if text is None:
            return Problem("dataschema", f"must name a version of the type's schema, of which the newest is {newest}")
        schema = self._compiled.of(text)
        if isinstance(schema, InvalidInput):
            # Taken by another release, which knows more. Nobody's event is refused for that.
            log.error("event_schema.unreadable", event_type=event.type, version=number, error=str(schema))
            return None
        return schema.fault(event.data)
