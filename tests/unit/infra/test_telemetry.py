"""Spans as a collector sees them, and context that passes through without any."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from infra.settings import Settings
from infra.telemetry import AttemptSpan, Telemetry, context_from, inject, open_telemetry, redacted_url
from schemas.deliveries import Answered, Failure, NoAnswer
from schemas.errors import ConfigurationError
from schemas.ids import DELIVERY, public_id

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
URL = "https://hooks.example:8443/a/b?token=abc&plain#part"
KEY = UUID("01a21428-bb91-721c-bc84-809cb686b013")


class Spans:
    """Telemetry that traces, and what it has exported once it is closed."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._open = open_telemetry(Settings(), "hookhare-test", exporter=self._exporter)
        self.telemetry = self._open.__enter__()

    def finished(self) -> list[ReadableSpan]:
        self._open.__exit__(None, None, None)
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def silent() -> Iterator[Telemetry]:
    with open_telemetry(Settings(), "hookhare-test") as telemetry:
        yield telemetry


def attempt(telemetry: Telemetry, *, number: int = 1, traceparent: str | None = TRACEPARENT) -> AttemptSpan:
    return telemetry.attempt_span(
        URL, traceparent=traceparent, attempt=number, event_type="order.created", delivery=KEY
    )


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


@pytest.mark.parametrize("traceparent", [None, TRACEPARENT])
def test_without_a_collector_no_span_is_made_and_the_context_passes_through(
    traceparent: str | None, silent: Telemetry
) -> None:
    assert not silent.tracing
    with attempt(silent, traceparent=traceparent) as span:
        assert span.traceparent == traceparent
        span.end(Answered(200, b"", None, 5, None))
    with silent.message_span("process", "hookhare.events", system="rabbitmq", traceparents=[traceparent]):
        assert not get_current_span().get_span_context().is_valid


def test_a_first_attempt_is_a_child_in_the_events_trace() -> None:
    spans = Spans()
    with attempt(spans.telemetry) as span:
        told = span.traceparent
        span.end(Answered(204, b"", None, 5, "203.0.113.7:8443"))
    (exported,) = spans.finished()
    trace, own = ids(exported)
    assert told == f"00-{trace}-{own}-01"
    assert trace == TRACE
    assert exported.parent is not None
    assert f"{exported.parent.span_id:016x}" == PARENT
    assert (exported.name, exported.kind) == ("POST", SpanKind.CLIENT)
    assert dict(exported.attributes or {}) == {
        "http.request.method": "POST",
        "http.response.status_code": 204,
        "url.full": "https://hooks.example:8443/a/b?token=REDACTED&REDACTED",
        "server.address": "hooks.example",
        "server.port": 8443,
        "network.peer.address": "203.0.113.7",
        "hookhare.delivery.id": public_id(DELIVERY, KEY),
        "hookhare.event.type": "order.created",
    }
    assert exported.status.status_code is StatusCode.UNSET


def test_a_retry_is_a_trace_of_its_own_linked_to_the_events() -> None:
    spans = Spans()
    with attempt(spans.telemetry, number=3) as span:
        told = span.traceparent
    (exported,) = spans.finished()
    assert ids(exported)[0] != TRACE
    assert exported.parent is None
    assert [f"{link.context.trace_id:032x}" for link in exported.links] == [TRACE]
    assert (exported.attributes or {})["http.request.resend_count"] == 2
    assert told is not None
    assert told.split("-")[1] == ids(exported)[0]


def test_an_event_without_context_begins_a_trace() -> None:
    spans = Spans()
    with attempt(spans.telemetry, traceparent=None) as first, attempt(spans.telemetry, number=2, traceparent=None):
        assert first.traceparent is not None
    assert [(span.parent, span.links) for span in spans.finished()] == [(None, ()), (None, ())]


@pytest.mark.parametrize(
    ("result", "error", "status"),
    [
        (Answered(404, b"", None, 5, None), "404", 404),
        (Answered(302, b"", None, 5, None), None, 302),
        (NoAnswer(Failure.TIMEOUT, "no answer came", 5, None), "timeout", None),
    ],
)
def test_what_became_of_an_attempt_is_told(result: Answered | NoAnswer, error: str | None, status: int | None) -> None:
    spans = Spans()
    with attempt(spans.telemetry) as span:
        span.end(result)
    (exported,) = spans.finished()
    attributes = exported.attributes or {}
    assert attributes.get("error.type") == error
    assert attributes.get("http.response.status_code") == status
    assert exported.status.status_code is (StatusCode.UNSET if error is None else StatusCode.ERROR)


def test_an_exception_is_named_and_its_message_kept_out() -> None:
    spans = Spans()
    with pytest.raises(ValueError, match="whsec_"), attempt(spans.telemetry):
        raise ValueError("whsec_secret")
    with (
        pytest.raises(ValueError, match="whsec_"),
        spans.telemetry.message_span("settle", "hookhare.retry", system="rabbitmq"),
    ):
        raise ValueError("whsec_secret")
    for exported in spans.finished():
        assert (exported.attributes or {})["error.type"] == "ValueError"
        assert exported.status.status_code is StatusCode.ERROR
        assert "whsec_secret" not in exported.to_json()


def test_work_on_one_message_is_its_traces_child_and_on_several_is_linked_to_all() -> None:
    spans = Spans()
    other = TRACEPARENT.replace("4bf9", "aaaa")
    with spans.telemetry.message_span("process", "hookhare.events", system="rabbitmq", traceparents=[TRACEPARENT]):
        carried: dict[str, str] = {}
        inject(carried)
    with spans.telemetry.message_span(
        "process", "hookhare.events", system="rabbitmq", traceparents=[TRACEPARENT, None, other, "nonsense"]
    ):
        pass
    alone, batch = spans.finished()
    assert ids(alone)[0] == TRACE
    assert carried["traceparent"] == f"00-{TRACE}-{ids(alone)[1]}-01"
    assert alone.links == ()
    assert batch.parent is None
    assert [f"{link.context.trace_id:032x}"[:4] for link in batch.links] == ["4bf9", "aaaa"]
    assert dict(batch.attributes or {}) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "hookhare.events",
        "messaging.batch.message_count": 4,
    }


@pytest.mark.parametrize(
    ("operation", "kind_of_operation", "kind"),
    [
        ("publish", "send", SpanKind.PRODUCER),
        ("receive", "receive", SpanKind.CLIENT),
        ("process", "process", SpanKind.CONSUMER),
        ("settle", "settle", SpanKind.CLIENT),
    ],
)
def test_spans_of_messages_are_named_by_operation_and_destination(
    operation: str, kind_of_operation: str, kind: SpanKind
) -> None:
    spans = Spans()
    with spans.telemetry.message_span(
        operation,  # type: ignore[arg-type] # one of those it takes
        "hookhare.retry.1189",
        system="rabbitmq",
        template="hookhare.retry.{ms}",
    ):
        pass
    (span,) = spans.finished()
    attributes = span.attributes or {}
    assert (span.name, span.kind) == (f"{operation} hookhare.retry.{{ms}}", kind)
    assert attributes["messaging.operation.type"] == kind_of_operation
    assert attributes["messaging.destination.template"] == "hookhare.retry.{ms}"


@pytest.mark.parametrize("text", ["", "nonsense", "00-" + "0" * 32 + "-" + PARENT + "-01", TRACEPARENT.upper() + "x"])
def test_a_malformed_traceparent_names_no_context(text: str) -> None:
    assert not get_current_span(context_from(text)).get_span_context().is_valid
    headers: dict[str, str] = {}
    inject(headers, context_from(text))
    assert headers == {}


def test_context_goes_in_and_out_unchanged() -> None:
    headers: dict[str, str] = {}
    inject(headers, context_from(TRACEPARENT))
    assert headers == {"traceparent": TRACEPARENT}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h.example/a/b", "https://h.example/a/b"),
        ("https://user:pass@h.example/a", "https://h.example/a"),
        ("https://h.example:8443/a?x=1&y=&z#f", "https://h.example:8443/a?x=REDACTED&y=REDACTED&REDACTED"),
        ("https://h.example/?", "https://h.example/"),
        ("http://[::1]:80/x?a=b", "http://[::1]/x?a=REDACTED"),
        ("http://[", "REDACTED"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert redacted_url(url) == shown


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://", "http://["])
def test_a_collector_that_is_no_url_is_a_configuration_error(endpoint: str) -> None:
    with (
        pytest.raises(ConfigurationError, match="HOOKHARE_OTLP_ENDPOINT"),
        open_telemetry(Settings(otlp_endpoint=endpoint), "hookhare-test"),
    ):
        pass
