"""Metrics, read as a Prometheus server reads them."""

import pytest
from opentelemetry.sdk.resources import Resource
from prometheus_client.parser import text_string_to_metric_families

from infra.metrics import Metrics

Sample = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(Resource({"service.name": "hookhare-test"}))


def read(metrics: Metrics) -> dict[Sample, float]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_a_counter_without_labels_starts_at_zero_and_only_grows(metrics: Metrics) -> None:
    assert read(metrics)["hookhare_events_admitted_total", ()] == 0
    metrics.events_admitted.add(3)
    metrics.events_admitted.add(4)
    assert read(metrics)["hookhare_events_admitted_total", ()] == 7
    assert read(metrics)["hookhare_events_admitted_total", ()] == 7


def test_a_counter_with_labels_has_a_series_for_each(metrics: Metrics) -> None:
    metrics.attempts.add(2, {"outcome": "delivered"})
    metrics.attempts.add(1, {"outcome": "retry"})
    metrics.attempts.add(5, {"outcome": "delivered"})
    shown = read(metrics)
    assert shown["hookhare_attempts_total", (("outcome", "delivered"),)] == 7
    assert shown["hookhare_attempts_total", (("outcome", "retry"),)] == 1
    assert ("hookhare_attempts_total", ()) not in shown


def test_durations_fall_into_buckets_of_seconds(metrics: Metrics) -> None:
    for duration_s in (0.004, 0.005, 0.3, 59.0, 61.0):
        metrics.attempt_s.record(duration_s)
    shown = read(metrics)
    name = "hookhare_attempt_duration_seconds"
    assert shown[f"{name}_bucket", (("le", "0.005"),)] == 2  # a bound belongs to its bucket
    assert shown[f"{name}_bucket", (("le", "0.25"),)] == 2
    assert shown[f"{name}_bucket", (("le", "0.5"),)] == 3
    assert shown[f"{name}_bucket", (("le", "60.0"),)] == 4
    assert shown[f"{name}_bucket", (("le", "+Inf"),)] == 5
    assert shown[f"{name}_count", ()] == 5
    assert shown[f"{name}_sum", ()] == pytest.approx(120.309)


@pytest.mark.parametrize("name", ["admit", "settle", "attempt", "end_to_end"])
def test_every_histogram_is_there_from_the_start(name: str, metrics: Metrics) -> None:
    assert read(metrics)[f"hookhare_{name}_duration_seconds_count", ()] == 0


def test_gauges_show_what_was_last_written_and_nothing_before(metrics: Metrics) -> None:
    names = ["hookhare_deliveries_held", "hookhare_deliveries_in_hand", "hookhare_oldest_pending_seconds"]
    assert not {name for name, _ in read(metrics)} & set(names)
    metrics.gauges.deliveries_held = 0
    metrics.gauges.in_hand = 12
    metrics.gauges.oldest_pending_s = 1.5
    assert [read(metrics)[name, ()] for name in names] == [0, 12, 1.5]


def test_two_processes_in_one_do_not_share_anything(metrics: Metrics) -> None:
    other = Metrics(Resource({"service.name": "other"}))
    metrics.events_admitted.add(1)
    assert read(other)["hookhare_events_admitted_total", ()] == 0
    (target,) = [labels for name, labels in read(other) if name == "target_info"]
    assert ("service_name", "other") in target
    other.close()
    assert read(metrics)["hookhare_events_admitted_total", ()] == 1
