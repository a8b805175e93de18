"""Publishing events from a domain service, over RabbitMQ or over the embedded mode's PostgreSQL.

Guarantees:
- `publish` and `publish_many` return only when the broker has stored the events durably and confirmed it.
- They never hang: within `timeout_s` there is a confirm, or an error that says what happened.
- A lost connection is retried within that time, with the same event: same id, same public id. If the first try had been
  stored after all, the dispatcher drops the second one as a duplicate.
- Bad input is refused before anything is sent, with every field at fault named.

Left out: an outbox. An event published after a database commit is lost if the process dies in between; one published
before it may tell of what was rolled back.
"""

import asyncio
import os
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from uuid_utils.compat import uuid7

from infra.broker.base import Broker, Outgoing, ToEvents
from producer.events import FailedEvent, NewEvent, NotAllPublished, PublishedEvent, as_event, filled, published
from schemas.errors import BrokerError, BrokerUnavailable, ConfigurationError, InvalidInput, Problem, Unroutable
from schemas.events import DEFAULT_TENANT, Event, event_message

_URL_VARIABLES: Final = (
    "HOOKHARE_BROKER_URL",
    "HOOKHARE_DATABASE_URL",
)  # without the first, the database is the broker
_BATCH_EVENTS: Final = 1000  # as many confirms as the broker's adapter has in flight at once
_DESTINATION: Final = "hookhare.events"
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0

_tracer = trace.get_tracer("hookhare.producer")
# This one, and not the process's configured propagator, because an event carries W3C's traceparent and no other form.
_trace_context = TraceContextTextMapPropagator()


class EventPublisher:
    """Publishes events. Open between `async with … as publisher`; one for a process is enough, any task may use it.

    `url` is amqp://, amqps:// or postgresql:// (the embedded mode's broker; needs `hookhare[server]`); without it
    HOOKHARE_BROKER_URL says, or else HOOKHARE_DATABASE_URL. `source` names what publishes, for events that do not name
    their own. `timeout_s` bounds each wait for the broker, connecting included. `max_event_bytes` is the dispatcher's
    setting of the same name. Opening raises ConfigurationError for a URL that cannot be one, and BrokerError when the
    broker is away.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        source: str | None = None,
        timeout_s: float = 10.0,
        max_event_bytes: int = 262_144,
    ) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._max_event_bytes = max_event_bytes
        self._new_broker, self._system = _broker_of(url if url is not None else _url_from_environment(), timeout_s)
        self._broker: Broker | None = None

    async def __aenter__(self) -> Self:
        self._broker = await self._new_broker().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            await broker.__aexit__(kind, error, trace)

    async def publish(
        self,
        type: str,  # noqa: A002  the field's own name, as in CloudEvents
        data: Any,
        *,
        tenant: str = DEFAULT_TENANT,
        id: str | None = None,  # noqa: A002
        source: str | None = None,
        subject: str | None = None,
        time: datetime | None = None,
        headers: Mapping[str, str] | None = None,
        dataschema: str | None = None,
    ) -> PublishedEvent:
        """Publish one event and return once it is stored; `NewEvent` says what the arguments are and what fills them.

        Raises InvalidInput before anything is sent. After PublishTimeout, and BrokerUnavailable, the event may be
        stored or not: the error's note gives the id to publish it again with, and it will be delivered once.
        """
        event = NewEvent(
            type,
            data,
            tenant=tenant,
            id=id,
            source=source,
            subject=subject,
            time=time,
            headers=headers,
            dataschema=dataschema,
        )
        with self._span(1) as traceparent:
            (complete,), (ready,) = self._prepare([event], traceparent)
            (error,) = await self._store([_outgoing(ready)])
            if error is not None:
                error.add_note(f"To publish this event again as the same one: id={complete.id!r}")
                raise error
            return published(complete)

    async def publish_many(self, events: Iterable[NewEvent]) -> Sequence[PublishedEvent]:
        """Publish events, pipelined, and return once all of them are stored; what is returned is in the order given.

        If any is invalid, InvalidInput names it and nothing is sent. If some are not confirmed, NotAllPublished says of
        each event what became of it: `publish_many(failure.event for failure in error.failed)` tries those again, as
        the same events. `timeout_s` is for every 1000 events; when 1000 in a row fail, the rest is not tried.
        """
        given = list(events)
        if not given:
            return []
        with self._span(len(given)) as traceparent:
            complete, ready = self._prepare(given, traceparent)
            errors: list[BrokerError | None] = []
            for start in range(0, len(ready), _BATCH_EVENTS):
                # Made here and not before, so that a million events are not held twice.
                errors += await self._store([_outgoing(one) for one in ready[start : start + _BATCH_EVENTS]])
                if all(errors[start:]):
                    errors += [BrokerUnavailable("not tried: all before it failed")] * (len(ready) - len(errors))
                    break
            outcomes = [
                published(event) if error is None else FailedEvent(event, error)
                for event, error in zip(complete, errors, strict=True)
            ]
            if any(errors):
                raise NotAllPublished(outcomes)
            return [outcome for outcome in outcomes if isinstance(outcome, PublishedEvent)]

    def _prepare(self, given: Sequence[NewEvent], traceparent: str | None) -> tuple[list[NewEvent], list[Event]]:
        now_ms = clock.time_ns() // 1_000_000
        complete: list[NewEvent] = []
        ready: list[Event] = []
        problems: list[Problem] = []
        for number, one in enumerate(given):
            try:
                event = filled(one, source=self._source, fresh_id=str(uuid7()), now_ms=now_ms)
                ready.append(as_event(event, traceparent=traceparent, max_bytes=self._max_event_bytes))
                complete.append(event)
            except InvalidInput as error:
                if len(given) == 1:
                    raise
                problems += [replace(problem, field=f"events[{number}].{problem.field}") for problem in error.problems]
        if problems:
            raise InvalidInput(problems)
        return complete, ready

    async def _store(self, outgoing: Sequence[Outgoing]) -> list[BrokerError | None]:
        """Store events, those again whose connection was lost, for as long as the time allows."""
        if self._broker is None:
            raise RuntimeError("the publisher is not open: use it inside `async with EventPublisher(…) as publisher`")
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + self._timeout_s
        errors: list[BrokerError | None] = [None] * len(outgoing)
        waiting = list(range(len(outgoing)))
        pause_s = _FIRST_PAUSE_S
        while True:
            results = await self._broker.publish_many(
                [outgoing[index] for index in waiting], timeout_s=max(ends_s - loop.time(), 0.001)
            )
            for index, error in zip(waiting, results, strict=True):
                errors[index] = _advised(error)
            waiting = [index for index in waiting if isinstance(errors[index], BrokerUnavailable)]
            if not waiting or loop.time() + pause_s >= ends_s:
                return errors
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    @contextmanager
    def _span(self, count: int) -> Iterator[str | None]:
        """A span around a publish. Gives the traceparent that travels with the events, which is the span's own.

        Where nobody set up OpenTelemetry's SDK there are no spans, and it is the caller's, if there is one.
        """
        attributes: dict[str, str | int] = {
            "messaging.system": self._system,
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": _DESTINATION,
        }
        if count != 1:
            attributes["messaging.batch.message_count"] = count
        with _tracer.start_as_current_span(
            f"publish {_DESTINATION}", kind=trace.SpanKind.PRODUCER, attributes=attributes
        ):
            carrier: dict[str, str] = {}
            _trace_context.inject(carrier)
            yield carrier.get("traceparent")


def _advised(error: BrokerError | None) -> BrokerError | None:
    if isinstance(error, Unroutable):
        advice = "start the dispatcher or the API, which declare what is missing, or run `hookhare topology --declare`"
        return Unroutable(f"{error}: {advice}")
    return error


def _outgoing(event: Event) -> Outgoing:
    return Outgoing(ToEvents(event.type), event_message(event))


def _url_from_environment() -> str:
    for variable in _URL_VARIABLES:
        if url := os.environ.get(variable):
            return url
    raise ConfigurationError(f"{_URL_VARIABLES[0]}: is not set, and no URL was given to the publisher")


def _broker_of(url: str, timeout_s: float) -> tuple[Callable[[], Broker], str]:
    """How to make the broker that a URL names, and the name of its system. The URL may hold a password: never shown."""
    scheme, separator, _ = url.partition("://")
    if separator and scheme in {"amqp", "amqps"}:
        from infra.broker.rabbitmq import RabbitBroker  # noqa: PLC0415  loaded only if used

        return lambda: RabbitBroker(url, topology=None, timeout_s=timeout_s), "rabbitmq"
    if separator and scheme in {"postgresql", "postgres"}:
        try:
            from infra.broker.postgres import PostgresBroker  # noqa: PLC0415  not in the base install
        except ModuleNotFoundError as missing:
            raise ConfigurationError(
                f"publishing over PostgreSQL needs {missing.name}: pip install 'hookhare[server]'"
            ) from missing
        return lambda: PostgresBroker(url, delivery_limit=100, timeout_s=timeout_s), "postgresql"
    raise ConfigurationError("the broker's URL must begin with amqp://, amqps:// or postgresql://")
