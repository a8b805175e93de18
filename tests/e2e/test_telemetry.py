"""What a dispatcher tells: spans from publish to POST, metrics, health, one wide line for each attempt."""

from collections.abc import Iterator
from pathlib import Path

import aiohttp
import orjson
import pytest
from opentelemetry import context
from opentelemetry import trace as traces
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from infra.broker.base import Outgoing, ToEvents
from schemas.messages import Message
from tests.support.receivers import Behaviour, Receiver, threaded_receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C


@pytest.fixture
def collector() -> Iterator[Receiver]:
    """In a thread of its own: a stopping dispatcher sends its last spans while the loop waits for it."""
    with threaded_receiver() as running:
        yield running


def spans(collector: Receiver) -> Iterator[Span]:
    for request in collector.to("/v1/traces"):
        for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            for scope in resource.scope_spans:
                yield from scope.spans


async def test_one_trace_goes_from_the_publisher_through_admission_to_the_endpoint(
    system: System, api: Api, receiver: Receiver, collector: Receiver
) -> None:
    await api.subscribe(receiver.behave("/hook", Behaviour(fail_first=1)), retry_policy={"delays_s": [0.1]})
    caller = NonRecordingSpan(SpanContext(TRACE_ID, 1, is_remote=True, trace_flags=TraceFlags(1)))
    token = context.attach(traces.set_span_in_context(caller))
    try:
        async with system.dispatcher(otlp_endpoint=collector.url("/")), system.publisher() as publisher:
            await publisher.publish("order.created", {"n": 1})
            await system.settled({"delivered": 1})
    finally:
        context.detach(token)
    by_name: dict[str, list[Span]] = {}
    for span in spans(collector):
        by_name.setdefault(span.name, []).append(span)
    (admit,) = by_name["process hookhare.events"]
    first, second = sorted(by_name["POST"], key=lambda span: span.start_time_unix_nano)
    trace = TRACE_ID.to_bytes(16, "big")
    assert admit.trace_id == first.trace_id == trace
    assert second.trace_id != trace  # a retry is linked, not a child of what is long over
    assert [link.trace_id for link in second.links] == [trace]
    for request, span in zip(receiver.to("/hook"), (first, second), strict=True):
        assert request.headers["traceparent"].split("-")[1:3] == [span.trace_id.hex(), span.span_id.hex()]


async def test_the_counters_say_what_happened(system: System, api: Api, receiver: Receiver) -> None:
    await api.subscribe(receiver.behave("/hook", Behaviour(fail_first=1)), "order.#", retry_policy={"delays_s": [0.1]})
    async with system.dispatcher() as dispatcher, system.publisher() as publisher, system.broker() as broker:
        for _ in range(2):
            await publisher.publish("order.created", {"n": 1}, id="order-1", source="shop")
        await publisher.publish("order.created", {"n": 2}, id="order-1", source="shop")
        await broker.publish(Outgoing(ToEvents("order.created"), Message(b"poison")), timeout_s=5)
        await system.settled({"delivered": 1})

        async def kept() -> bool:
            return len(await api.all("/v1/dead-letters")) == 2

        await eventually(kept)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{dispatcher.port}") as session:
            text = await (await session.get("/metrics")).text()
            ready = await session.get("/readyz")
            assert (ready.status, await ready.json()) == (200, {"heartbeat": "ok", "store": "ok", "broker": "ok"})
            assert (await session.get("/healthz")).status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("hookhare_"))
    expected = {
        "hookhare_events_admitted_total": 1,
        "hookhare_events_duplicate_total": 1,
        "hookhare_events_conflict_total": 1,
        "hookhare_events_unreadable_total": 1,
        "hookhare_deliveries_created_total": 1,
        'hookhare_attempts_total{outcome="retry"}': 1,
        'hookhare_attempts_total{outcome="delivered"}': 1,
        "hookhare_hints_published_total": 1,
        "hookhare_end_to_end_duration_seconds_count": 1,
    }
    assert {name: float(values[name]) for name in expected} == expected


async def test_one_wide_line_for_each_attempt(system: System, api: Api, receiver: Receiver, tmp_path: Path) -> None:
    subscription = await api.subscribe(
        receiver.behave("/hook", Behaviour(fail_first=1)), retry_policy={"delays_s": [0.1]}
    )
    log = tmp_path / "dispatcher.log"
    async with DispatcherProcess(system, log), system.publisher() as publisher:
        published = await publisher.publish("order.created", {"n": 1})
        await system.settled({"delivered": 1})
    lines = [orjson.loads(line) for line in log.read_bytes().splitlines() if b"delivery.attempted" in line]
    assert [(line["attempt"], line["outcome"], line["status_code"]) for line in lines] == [
        (1, "retry", 503),
        (2, "delivered", 200),
    ]
    for line in lines:
        assert line["event_id"] == published.id
        assert line["subscription_id"] == subscription["id"]
        assert line["duration_ms"] >= line["first_byte_ms"] >= 0
        assert (line["dns_ms"], line["tls_ms"]) == (None, None)  # an address, and no TLS
