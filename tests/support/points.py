"""Named points of a dispatcher at which a test can put a fault: around every commit, publish, ack and POST.

The adapters are wrapped from outside for as long as a trap is set, in the process that sets it; production code carries
no hooks. A commit goes by the names of the statements that had an effect in it (`INSERT_DELIVERIES`, `CLAIM_DUE`), as
`infra/store/statements.py` and its neighbours name them; a statement within a transaction, and its preparation, by its
name; a publish by the kind of its address, an ack by its queue. What is being POSTed is known too (`under_way`).

`SENT` lies between BEFORE and AFTER: the bytes are on their way, and nobody has read the answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, wraps
from typing import Any, Final

import pytest
from asyncpg.connection import Connection

from infra.broker import postgres_rows
from infra.broker.base import Outgoing
from infra.broker.postgres import PostgresBroker
from infra.broker.postgres_consumer import PostgresConsumer
from infra.broker.rabbit_consumer import RabbitConsumer
from infra.broker.rabbitmq import RabbitBroker
from infra.egress import Egress
from infra.store import (
    dead_letters,
    deliveries,
    operational,
    partitions,
    replays,
    statements,
    streaks,
    subscriptions,
    upkeep,
)

_MODULES: Final = (
    *(postgres_rows, dead_letters, deliveries, operational, partitions, replays, streaks, subscriptions),
    statements,
    upkeep,
)
_TURNS: Final = 20  # of the loop, after which what was begun has written its bytes


class Step(StrEnum):
    COMMIT = "commit"
    STATEMENT = "statement"
    PREPARE = "prepare"
    PUBLISH = "publish"
    ACK = "ack"
    RELEASE = "release"
    POST = "POST"


class Moment(StrEnum):
    BEFORE = "before"
    SENT = "sent"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Point:
    """`what` is a statement's name, the class of an address, a queue's name, or a part of a URL. `nth` from 1."""

    moment: Moment
    step: Step
    what: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.moment} {self.step} {self.what}" + (f" #{self.nth}" if self.nth > 1 else "")


@dataclass(slots=True, eq=False)
class Trap:
    """Runs `action` when its point is reached for the nth time, once, or from then on `every` time.

    Whoever reached it waits until it has run.
    """

    point: Point
    action: Callable[[], Awaitable[None] | None]
    every: bool = False
    seen: int = 0
    sprung: asyncio.Event = field(default_factory=asyncio.Event)

    def wants(self, moment: Moment, step: Step, what: frozenset[str]) -> bool:
        point = self.point
        return (
            (self.every or not self.sprung.is_set())
            and (point.moment, point.step) == (moment, step)
            and point.what in what
        )

    async def reach(self) -> None:
        self.seen += 1
        if self.seen == self.point.nth or (self.every and self.sprung.is_set()):
            self.sprung.set()
            done = self.action()
            if done is not None:
                await done


_traps: list[Trap] = []
under_way: list[tuple[str, str]] = []  # POSTs that have begun and have no outcome yet, by webhook-id and URL


@contextmanager
def trap(point: Point, action: Callable[[], Awaitable[None] | None], *, every: bool = False) -> Iterator[Trap]:
    """Set a trap while the context is open; several may be open at once."""
    one = Trap(point, action, every)
    with pytest.MonkeyPatch.context() as patch:
        if not _traps:
            _wrap_adapters(patch)
        _traps.append(one)
        try:
            yield one
        finally:
            _traps.remove(one)


def _wrap_adapters(patch: pytest.MonkeyPatch) -> None:
    for name in ("execute", "fetch", "fetchrow", "fetchval"):
        patch.setattr(Connection, name, _statement(getattr(Connection, name)))
    patch.setattr(Connection, "_get_statement", _prepare(getattr(Connection, "_get_statement")))  # noqa: B009
    for broker in (RabbitBroker, PostgresBroker):
        patch.setattr(broker, "publish_many", _publish_many(broker.publish_many))
    patch.setattr(RabbitBroker, "publish", _publish(RabbitBroker.publish))  # the other one's goes by publish_many
    for consumer in (RabbitConsumer, PostgresConsumer):
        patch.setattr(consumer, "ack", _settle(Step.ACK, consumer.ack))
        patch.setattr(consumer, "release", _settle(Step.RELEASE, consumer.release))
    patch.setattr(Egress, "post", _post(Egress.post))


async def _around(step: Step, what: frozenset[str], call: Callable[[], Awaitable[Any]]) -> Any:
    await _reach(Moment.BEFORE, step, what)
    if any(one.wants(Moment.SENT, step, what) for one in _traps):
        begun = asyncio.ensure_future(call())
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        await _reach(Moment.SENT, step, what)
        result = await begun
    else:
        result = await call()
    await _reach(Moment.AFTER, step, what)
    return result


async def _reach(moment: Moment, step: Step, what: frozenset[str]) -> None:
    for one in tuple(_traps):
        if one.wants(moment, step, what):
            await one.reach()


_effects: dict[int, set[str]] = {}  # of the open transaction of each connection


def _statement(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def run(connection: Connection, query: str, *arguments: Any, **options: Any) -> Any:
        def call() -> Awaitable[Any]:
            return original(connection, query, *arguments, **options)

        if query.startswith("BEGIN"):
            _effects[id(connection)] = set()
            return await call()
        if query.startswith("COMMIT"):
            return await _around(Step.COMMIT, frozenset(_effects.pop(id(connection), ())), call)
        name = _names().get(query)
        if name is None or connection.is_closed():  # then it says so itself
            return await call()
        if not connection.is_in_transaction():
            return await _around(Step.COMMIT, frozenset({name}), call)
        result = await _around(Step.STATEMENT, frozenset({name}), call)
        if _had_effect(result):
            _effects.setdefault(id(connection), set()).add(name)
        return result

    return run


def _prepare(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """After it the server has been asked to parse, and awaits the rest."""

    @wraps(original)
    async def prepare(connection: Connection, query: str, *arguments: Any, **options: Any) -> Any:
        prepared = await original(connection, query, *arguments, **options)
        await _reach(Moment.AFTER, Step.PREPARE, frozenset({_names().get(query, "")}))
        return prepared

    return prepare


def statement_names() -> set[str]:
    """What a commit may be named by."""
    return set(_names().values())


@cache
def _names() -> Mapping[str, str]:
    """The name of each statement by its text."""
    names = {}
    for module in _MODULES:
        for name, value in vars(module).items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and " " in text:
                    names[text] = name.lstrip("_")
    return names


def _had_effect(result: object) -> bool:
    """Whether a statement found or changed a row: the result of a fetch, or a status as `UPDATE 0`."""
    if isinstance(result, str) and result[:1].isupper():
        return not result.endswith(" 0")
    return result is not None and result != []


def _publish_many(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def publish_many(broker: object, outgoing: Sequence[Outgoing], **options: Any) -> Any:
        what = frozenset(type(one.to).__name__ for one in outgoing)
        return await _around(Step.PUBLISH, what, lambda: original(broker, outgoing, **options))

    return publish_many


def _publish(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def publish(broker: object, outgoing: Outgoing, **options: Any) -> Any:
        what = frozenset({type(outgoing.to).__name__})
        return await _around(Step.PUBLISH, what, lambda: original(broker, outgoing, **options))

    return publish


def _settle(step: Step, original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    async def settle(consumer: RabbitConsumer | PostgresConsumer, received: Sequence[object]) -> None:
        if received:
            what = frozenset({consumer._queue.value})
            await _around(step, what, lambda: original(consumer, received))

    return settle


def _post(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def post(egress: Egress, url: str, **options: Any) -> Any:
        what = frozenset({"", *url.split("/")})
        one = (options["headers"]["webhook-id"], url)
        under_way.append(one)
        try:
            return await _around(Step.POST, what, lambda: original(egress, url, **options))
        finally:
            under_way.remove(one)

    return post
