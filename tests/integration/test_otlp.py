"""Spans reach a collector over OTLP/HTTP, and one that is away does not hold up a stopping process for long."""

import asyncio
from time import monotonic

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from infra.settings import Settings
from infra.telemetry import open_telemetry
from tests.support.hostile import accepts_and_hangs, hostile
from tests.support.receivers import threaded_receiver


def tell(endpoint: str) -> float:
    """Make a span and stop; how long the stopping took, in seconds."""
    with open_telemetry(Settings(otlp_endpoint=endpoint), "hookhare-test") as telemetry:
        with telemetry.message_span("process", "hookhare.events", system="rabbitmq"):
            pass
        began = monotonic()
    return monotonic() - began


def test_the_last_spans_are_sent_before_the_process_ends() -> None:
    with threaded_receiver() as collector:
        assert tell(collector.url("/")) < 5
        (request,) = collector.to("/v1/traces")
    sent = ExportTraceServiceRequest.FromString(request.body)
    (resource,) = sent.resource_spans
    assert {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"] == "hookhare-test"
    assert [span.name for span in resource.scope_spans[0].spans] == ["process hookhare.events"]


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_collector_that_does_not_answer_holds_nothing_up(hangs: bool) -> None:
    async with hostile(accepts_and_hangs) as collector:
        url = collector.url() if hangs else "http://127.0.0.1:9"  # the discard port: nobody listens
        assert await asyncio.to_thread(tell, url) < 8
