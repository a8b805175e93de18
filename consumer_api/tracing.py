"""The caller's trace context (W3C `traceparent`) on its way to the event, with or without spans of our own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

from consumer_api.context import BROKER_SYSTEM, TELEMETRY
from infra.telemetry import inject
from schemas.fields import is_traceparent

_DESTINATION: Final = "hookhare.events"


def callers_traceparent(request: web.Request) -> str | None:
    """The traceparent that the caller sent, if it is one."""
    given = request.headers.get("traceparent", "")
    return given if is_traceparent(given) else None


@contextmanager
def publish_span(request: web.Request) -> Iterator[str | None]:
    """A span around the publish of one event. Gives the traceparent that goes on: the span's, or the caller's."""
    given = callers_traceparent(request)
    system = request.app[BROKER_SYSTEM]
    with request.app[TELEMETRY].message_span("publish", _DESTINATION, system=system, traceparents=[given]):
        carrier: dict[str, str] = {}
        inject(carrier)
        yield carrier.get("traceparent", given)
