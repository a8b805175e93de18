"""The text fields' rules, by tables; and that what passes is storable, printable in a log, and bounded."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.fields import (
    description_fault,
    id_fault,
    in_utc,
    is_traceparent,
    parse_time,
    source_fault,
    subject_fault,
    tenant_fault,
    type_fault,
)

TEXTS = [(source_fault, 512), (id_fault, 512), (subject_fault, 1024)]


@pytest.mark.parametrize("text", ["default", "a", "A-Z_0.9", "x" * 64])
def test_tenants(text: str) -> None:
    assert tenant_fault(text) is None


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "a/b", "é", "a\n", "\x00", "\ud800", "٣"])
def test_no_tenants(text: str) -> None:
    assert tenant_fault(text) == "must be 1 to 64 letters, digits, '_', '.' or '-'"


@pytest.mark.parametrize("text", ["a", "order.created", "com.example/x:y-z_9.a", "x" * 200, ".".join("x" * 100)])
def test_types(text: str) -> None:
    assert type_fault(text) is None


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a b", "a.*", "#", "é", "a\n", "x" * 201, "a\x00", "\ud800", "a,b"]
)
def test_no_types(text: str) -> None:
    assert "joined by dots, at most 200 bytes" in (type_fault(text) or "")


@pytest.mark.parametrize(("rule", "most"), TEXTS)
def test_texts(rule: Callable[[str], str | None], most: int) -> None:
    for text in ("x", "/a/b?c", "https://example.com/a b", "Grüße 👩‍🚀", "x" * most, "é" * (most // 2)):
        assert rule(text) is None


@pytest.mark.parametrize(("rule", "most"), TEXTS)
def test_no_texts(rule: Callable[[str], str | None], most: int) -> None:
    for text in ("", "a\x00b", "a\nb", "\x7f", "\x85", "\ud800", "\ufffe", "\U0010ffff", "\ufdd0"):
        assert rule(text) == f"must be 1 to {most} bytes of text without control characters"
    assert rule("x" * (most + 1)) is not None
    assert rule("é" * (most // 2) + "x") is not None


@given(st.text(st.characters(codec=None)))
def test_what_passes_is_storable_and_bounded(text: str) -> None:
    for rule in (tenant_fault, type_fault, source_fault, id_fault, subject_fault, description_fault):
        if rule(text) is None:
            assert "\x00" not in text
            assert len(text.encode("utf-8", errors="strict")) <= 1024


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31 12:00:00.5+00:00", datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-01-31T12:00:00.123456789Z", datetime(2026, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC)),
        ("2026-01-31T12:00:00+05:30", datetime(2026, 1, 31, 6, 30, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_times(text: str, time: datetime) -> None:
    assert parse_time(text) == time
    assert parse_time(text).tzinfo is UTC  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-31",
        "2026-01-31T12:00:00",  # no zone: whose noon?
        "2026-01-31T12:00Z",
        "2026-W05-6T12:00:00Z",
        "20260131T120000Z",
        "2026-02-30T12:00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T23:59:60Z",
        "2026-01-31T12:00:00+25:00",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00Z\n",
        "٢٠٢٦-01-31T12:00:00Z",
        "0001-01-01T00:00:00+01:00",  # before the first year
        "9999-12-31T23:59:59-01:00",
        "1769860800",
        "now",
    ],
)
def test_no_times(text: str) -> None:
    assert parse_time(text) is None


def test_a_naive_time_is_in_no_zone() -> None:
    assert in_utc(datetime(2026, 1, 31)) is None  # noqa: DTZ001 - the case itself


@pytest.mark.parametrize("version", ["00", "01", "fe"])
def test_traceparents(version: str) -> None:
    assert is_traceparent(f"{version}-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0af7651916cd43dd8448eb211c8031-b7ad6b7169203331-01",
    ],
)
def test_no_traceparents(text: str) -> None:
    assert not is_traceparent(text)
