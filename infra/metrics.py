"""What is counted and measured: OpenTelemetry metrics under `hookhare.*`, read as Prometheus text.

Sums and buckets are kept here, in plain numbers, and given to OpenTelemetry when somebody asks. Its own `add` and
`record` cost 4 µs and more (measured), ten times as much, and some are called for every delivery.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import time_ns
from typing import Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SCOPE: Final = "hookhare"

# In seconds. Group commits: a millisecond to the longest statement.
_COMMIT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# A POST: a local endpoint to the longest deadline.
_POST_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)
# Acceptance to delivery: at once to the end of the default schedule, three days on.
_JOURNEY_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0, 259200.0)

_NO_ATTRIBUTES: Final[Mapping[str, str]] = {}


@dataclass(slots=True)
class Gauges:
    """What the dispatcher last saw; None is not shown. Whoever looks writes it here."""

    deliveries_held: int | None = None
    deliveries_retrying: int | None = None
    oldest_pending_s: float | None = None
    in_hand: int | None = None


class Tally:
    """A counter: a sum for each set of attributes."""

    __slots__ = ("_sums",)

    def __init__(self, *, labelled: bool = False) -> None:
        # Without labels there is one series, and it starts at zero, so that the first event shows as a rate.
        self._sums: dict[tuple[tuple[str, str], ...], int] = {} if labelled else {(): 0}

    def add(self, amount: int, attributes: Mapping[str, str] = _NO_ATTRIBUTES) -> None:
        """Add `amount`. Attribute values must come from a small set: each combination is a series for good."""
        key = tuple(attributes.items())
        self._sums[key] = self._sums.get(key, 0) + amount

    def observe(self, _: CallbackOptions) -> Iterator[Observation]:
        for key, total in self._sums.copy().items():
            yield Observation(total, dict(key))


class Durations:
    """A histogram: how many durations fell into each bucket, and their sum."""

    __slots__ = ("_bounds_s", "_counts", "_description", "_name", "_since_ns", "_sum_s")

    def __init__(self, name: str, description: str, bounds_s: tuple[float, ...]) -> None:
        self._name = name
        self._description = description
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0
        self._since_ns = time_ns()

    def record(self, duration_s: float) -> None:
        self._counts[bisect_left(self._bounds_s, duration_s)] += 1
        self._sum_s += duration_s

    def metric(self) -> Metric:
        """All of it so far, in OpenTelemetry's data model. Least and greatest are not kept: Prometheus has no use."""
        point = HistogramDataPoint(
            attributes={},
            start_time_unix_nano=self._since_ns,
            time_unix_nano=time_ns(),
            count=sum(self._counts),
            sum=self._sum_s,
            bucket_counts=tuple(self._counts),
            explicit_bounds=self._bounds_s,
            min=math.nan,
            max=math.nan,
        )
        return Metric(self._name, self._description, "s", Histogram([point], AggregationTemporality.CUMULATIVE))


class _Reader(PrometheusMetricReader):
    """Reads OpenTelemetry's own instruments, and ours with them."""

    def __init__(self, registry: CollectorRegistry, resource: Resource) -> None:
        super().__init__(scope_info_enabled=False, registry=registry)
        self._resource = resource
        self.durations: list[Durations] = []

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: object) -> None:
        scope = ScopeMetrics(InstrumentationScope(_SCOPE), [one.metric() for one in self.durations], "")
        ours = ResourceMetrics(self._resource, [scope], "")
        super()._receive_metrics(MetricsData([*metrics_data.resource_metrics, ours]), timeout_millis)


class Metrics:
    """The instruments, by the names that the code knows them by. Durations are recorded in seconds."""

    def __init__(self, resource: Resource) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._reader = _Reader(self._registry, resource)
        self._provider = MeterProvider([self._reader], resource=resource, shutdown_on_exit=False)
        self._meter = self._provider.get_meter(_SCOPE)
        self.gauges = gauges = Gauges()
        count, durations = self._count, self._durations
        self.events_admitted = count("events.admitted", "events stored, with a row for each match")
        self.events_duplicate = count("events.duplicate", "events that were known already")
        self.events_conflict = count("events.conflict", "events with a known id and another body")
        self.events_unreadable = count("events.unreadable", "messages that are not events")
        self.events_invalid = count(
            "events.invalid", "events that the catalogue has something against, by what was done", labelled=True
        )
        self.deliveries_created = count("deliveries.created", "delivery rows stored with their events")
        self.attempts = count("attempts", "POSTs concluded, by outcome", labelled=True)
        self.breakers = count("breakers", "breakers that opened or closed", labelled=True)
        self.hints_published = count("hints.published", "work items and dead letters that the broker confirmed")
        self.hints_failed = count("hints.failed", "hints that the broker did not take; the reconciler acts instead")
        self.dead_letters = count("dead_letters", "dead letters stored, by kind", labelled=True)
        self.reconciled = count("reconciled", "rows that the reconciler put right, by what was wrong", labelled=True)
        self.admit_s = durations("admit", "one admission batch, from its first look to its acks", _COMMIT_S)
        self.settle_s = durations("settle", "one settlement batch, retries included", _COMMIT_S)
        self.attempt_s = durations("attempt", "one POST, from look-up to the end of the body", _POST_S)
        self.end_to_end_s = durations("end_to_end", "from acceptance to delivery", _JOURNEY_S)
        self._watch("deliveries.held", "deliveries in an endpoint's backlog", lambda: gauges.deliveries_held)
        self._watch("deliveries.retrying", "deliveries waiting for a retry", lambda: gauges.deliveries_retrying)
        self._watch("deliveries.in_hand", "deliveries claimed by this dispatcher", lambda: gauges.in_hand)
        self._watch("oldest_pending", "age of the oldest pending delivery", lambda: gauges.oldest_pending_s, unit="s")

    def render(self) -> tuple[bytes, str]:
        """All metrics as Prometheus text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def close(self) -> None:
        self._provider.shutdown()

    def _count(self, name: str, description: str, *, labelled: bool = False) -> Tally:
        tally = Tally(labelled=labelled)
        self._meter.create_observable_counter(f"hookhare.{name}", [tally.observe], description=description)
        return tally

    def _durations(self, name: str, description: str, bounds_s: tuple[float, ...]) -> Durations:
        durations = Durations(f"hookhare.{name}.duration", description, bounds_s)
        self._reader.durations.append(durations)
        return durations

    def _watch(self, name: str, description: str, read: Callable[[], float | None], unit: str = "") -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            value = read()
            return () if value is None else (Observation(value),)

        self._meter.create_observable_gauge(f"hookhare.{name}", [observe], unit, description)
