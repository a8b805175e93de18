"""The table of limits in ARCHITECTURE.md names settings, defaults, places and tests that there are."""

import re
from pathlib import Path

import pytest

from infra.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SETTING = re.compile(r"`([a-z_]+)` ([\d.]+)")
NAME = re.compile(r"`([^`]+)`")

# Limits of each subscription, which its owner sets.
OF_A_SUBSCRIPTION = {"ordered", "rate_limit", "timeout_s"}
# Settings with a unit that are how often something is done, or how something is judged, and bound nothing.
NO_LIMITS = {
    "begin_margin_s",
    "breaker_rest_s",
    "breaker_timeouts",
    "breaker_min_attempts",
    "breaker_window_s",
    "broker_lease_s",
    "failing_after_s",
    "feeder_period_s",
    "heartbeat_s",
    "maintenance_period_s",
    "partitions_ahead_days",
    "reconcile_period_s",
    "renewal_timeout_s",
}
UNITS = re.compile(r"_(s|ms|days|bytes|rows|limit|in_hand|in_flight|requests|attempts|timeouts)$")


def rows() -> list[list[str]]:
    section = (ROOT / "ARCHITECTURE.md").read_text().partition("\n## Limits\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0] or row[1])
def test_each_limit_is_as_the_table_says(row: list[str]) -> None:
    _, limit, setting, shown_by = row
    assert limit
    for name, default in SETTING.findall(setting):
        assert float(Settings.model_fields[name].default) == float(default), name
    told = {name for name, _ in SETTING.findall(setting)}
    places = set(NAME.findall(setting)) - told - OF_A_SUBSCRIPTION
    tests = NAME.findall(shown_by)
    assert tests
    assert [path for path in [*places, *tests] if not (ROOT / path).is_file()] == []
    assert all(Path(test).name.startswith("test_") for test in tests)


def test_every_setting_that_limits_is_in_the_table() -> None:
    told = {name for row in rows() for name, _ in SETTING.findall(row[2])}
    limits = {name for name in Settings.model_fields if UNITS.search(name) or name in {"prefetch", "database_pool"}}
    assert limits - told == NO_LIMITS
