"""Spans, metrics and logs of a process.

Nothing is global but the log configuration: a `Telemetry` is passed to whoever tells something. Spans are made only
with HOOKHARE_OTLP_ENDPOINT set; without it a W3C `traceparent` still passes through unchanged, at the cost of a small
object.

Names and attributes follow OpenTelemetry's semantic conventions for messaging and HTTP. Retries are linked to the
event's trace and not part of it: a trace would otherwise stay open for days.
"""

import contextlib
import platform
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from importlib.metadata import version
from types import TracebackType
from typing import Final, Literal, Self
from uuid import UUID

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    Link,
    NoOpTracer,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from uuid_utils.compat import uuid7
from yarl import URL

from infra.logs import configure_logging
from infra.metrics import Metrics
from infra.settings import Settings
from schemas.deliveries import Answered, AttemptResult
from schemas.errors import ConfigurationError
from schemas.ids import DELIVERY, public_id

__all__ = ["AttemptSpan", "Telemetry", "configure_logging", "context_from", "inject", "open_telemetry", "redacted_url"]

_log = structlog.get_logger(__name__)

_EXPORT_S: Final = 3.0  # one export to the collector, its retries included
_SHUTDOWN_S: Final = 5.0  # the last export, at the end
_LINKS_MAX: Final = 128  # of one span; the SDK keeps no more
_W3C: Final = TraceContextTextMapPropagator()
_OPERATIONS: Final = {
    "publish": ("send", SpanKind.PRODUCER),
    "receive": ("receive", SpanKind.CLIENT),
    "process": ("process", SpanKind.CONSUMER),
    "settle": ("settle", SpanKind.CLIENT),
}


def inject(headers: MutableMapping[str, str], context: Context | None = None) -> None:
    """Write the `traceparent` of `context` (the current one) into `headers`; nothing when there is no trace."""
    _W3C.inject(headers, context)


def context_from(traceparent: str | None) -> Context:
    """The context that a `traceparent` names; an empty one for None and for what is not of the W3C's form."""
    return _W3C.extract({"traceparent": traceparent}, Context()) if traceparent is not None else Context()


@lru_cache(maxsize=1024)
def redacted_url(url: str) -> str:
    """`url` as a trace may show it: no user, no password, no value of the query, no fragment."""
    try:
        parsed = URL(url)
    except ValueError:
        return "REDACTED"
    parts = (part.partition("=") for part in parsed.raw_query_string.split("&") if part)
    hidden = "&".join(f"{name}=REDACTED" if equals else "REDACTED" for name, equals, _ in parts)
    bare = parsed.with_user(None).with_fragment(None).with_query(None)
    return f"{bare}?{hidden}" if hidden else str(bare)


class AttemptSpan:
    """The span of one POST, or nothing but the event's `traceparent` on its way through. A context manager.

    `traceparent` is what the POST carries. `end` tells the span what became of it.
    """

    __slots__ = ("_span", "traceparent")

    def __init__(self, traceparent: str | None, span: Span | None = None) -> None:
        self.traceparent = traceparent
        self._span = span

    def end(self, result: AttemptResult) -> None:
        """Record the result, by the conventions for HTTP clients: from 400 on is an error."""
        span = self._span
        if span is None:
            return
        if result.remote_address is not None:
            span.set_attribute("network.peer.address", result.remote_address.rpartition(":")[0].strip("[]"))
        if isinstance(result, Answered):
            span.set_attribute("http.response.status_code", result.status)
            if result.status < 400:
                return
            error, reason = str(result.status), None
        else:
            error, reason = result.failure.value, result.reason
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR, reason))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        if kind is not None:
            _fail(self._span, kind)
        self._span.end()


class Telemetry:
    """What a process tells of itself. `tracing` says whether spans are made."""

    def __init__(self, *, tracer: Tracer, tracing: bool, metrics: Metrics) -> None:
        self.tracer = tracer
        self.tracing = tracing
        self.metrics = metrics
        self.gauges = metrics.gauges

    def render(self) -> tuple[bytes, str]:
        """The metrics as Prometheus text, and its content type."""
        return self.metrics.render()

    def attempt_span(
        self, url: str, *, traceparent: str | None, attempt: int, event_type: str, delivery: UUID
    ) -> AttemptSpan:
        """A span around attempt number `attempt` (from 1) of an event that came with `traceparent`.

        The first attempt is a child in the event's trace; later ones are traces of their own, linked to it.
        """
        if not self.tracing:
            return AttemptSpan(traceparent)
        origin = context_from(traceparent)
        target = URL(url)
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "url.full": redacted_url(url),
            "server.address": target.host or "",
            "server.port": target.port or 0,
            "hookhare.delivery.id": public_id(DELIVERY, delivery),
            "hookhare.event.type": event_type,
        }
        if attempt > 1:
            attributes["http.request.resend_count"] = attempt - 1
        span = self.tracer.start_span(
            "POST",
            context=origin if attempt == 1 else Context(),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=_links([origin]) if attempt > 1 else (),
        )
        carrier: dict[str, str] = {}
        inject(carrier, set_span_in_context(span, Context()))
        return AttemptSpan(carrier.get("traceparent", traceparent), span)

    def message_span(
        self,
        operation: Literal["publish", "receive", "process", "settle"],
        destination: str,
        *,
        system: str,
        template: str | None = None,
        traceparents: Sequence[str | None] = (),
    ) -> AbstractContextManager[None]:
        """A span, current while it is open, around work on messages of `destination` (a queue or an exchange).

        `traceparents` are those of the messages: a single message's is the parent, several are linked. Where routing
        keys vary without bound, `template` names them all.
        """
        if not self.tracing:
            return nullcontext()
        return self._message_span(operation, destination, system, template, traceparents)

    @contextmanager
    def _message_span(
        self, operation: str, destination: str, system: str, template: str | None, traceparents: Sequence[str | None]
    ) -> Iterator[None]:
        kind_of_operation, kind = _OPERATIONS[operation]
        origins = [context_from(one) for one in traceparents[:_LINKS_MAX] if one is not None]
        alone = origins[0] if len(traceparents) == 1 and origins else None
        attributes: dict[str, str | int] = {
            "messaging.system": system,
            "messaging.operation.name": operation,
            "messaging.operation.type": kind_of_operation,
            "messaging.destination.name": destination,
        }
        if template is not None:
            attributes["messaging.destination.template"] = template
        if len(traceparents) > 1:
            attributes["messaging.batch.message_count"] = len(traceparents)
        with self.tracer.start_as_current_span(
            f"{operation} {template or destination}",
            context=alone,
            kind=kind,
            attributes=attributes,
            links=() if alone is not None else _links(origins),
            record_exception=False,  # an exception's message may hold what must not be in a trace
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                _fail(span, type(error))
                raise


def _fail(span: Span, kind: type[BaseException]) -> None:
    span.set_attribute("error.type", kind.__name__)
    span.set_status(Status(StatusCode.ERROR))


def _links(origins: Sequence[Context]) -> list[Link]:
    contexts = (get_current_span(origin).get_span_context() for origin in origins)
    return [Link(context) for context in contexts if context.is_valid]


@contextmanager
def open_telemetry(settings: Settings, service: str, *, exporter: SpanExporter | None = None) -> Iterator[Telemetry]:
    """The telemetry of the process `service`. `exporter` replaces the one that the settings ask for.

    On exit the last spans are sent; a collector that is away holds it up for a few seconds at most.
    """
    resource = Resource(
        {
            "service.name": service,
            "service.namespace": "hookhare",
            "service.version": version("hookhare"),
            "service.instance.id": str(uuid7()),
            "host.name": platform.node(),
        }
    )
    metrics = Metrics(resource)
    exporter = exporter or _otlp_exporter(settings)
    try:
        if exporter is None:
            yield Telemetry(tracer=NoOpTracer(), tracing=False, metrics=metrics)
            return
        provider = TracerProvider(ParentBased(ALWAYS_ON), resource, shutdown_on_exit=False)
        processor = BatchSpanProcessor(exporter)
        provider.add_span_processor(processor)
        try:
            yield Telemetry(tracer=provider.get_tracer("hookhare"), tracing=True, metrics=metrics)
        finally:
            _shut_down(processor, exporter)
    finally:
        metrics.close()


def _otlp_exporter(settings: Settings) -> SpanExporter | None:
    if settings.otlp_endpoint is None:
        return None
    endpoint = settings.otlp_endpoint.get_secret_value()
    # It takes a tenth of a second to import, for protobuf; most processes have no collector.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    with contextlib.suppress(ValueError):
        if URL(endpoint).scheme in {"http", "https"} and URL(endpoint).host:
            return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_S)
    raise ConfigurationError("HOOKHARE_OTLP_ENDPOINT: must be an http:// or https:// URL")


def _shut_down(processor: BatchSpanProcessor, exporter: SpanExporter) -> None:
    # The SDK's own shutdown waits for half a minute, and without a limit on what is still queued.
    closing = threading.Thread(target=processor.shutdown, name="hookhare-last-spans", daemon=True)
    closing.start()
    closing.join(_SHUTDOWN_S)
    if closing.is_alive():
        exporter.shutdown()  # ends the wait between its retries
        _log.warning("telemetry.spans_lost", reason="the collector did not take the last spans in time")
