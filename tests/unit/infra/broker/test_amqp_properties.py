"""Properties are read as pamqp reads them, and what it cannot read costs no more than itself."""

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from infra.broker.amqp_properties import UNREADABLE_HEADER, read_properties

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
moments = st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
leaves = st.one_of(
    *(texts, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.none(), st.floats(-1e38, 1e38), moments),
    st.binary(max_size=20).map(bytearray),
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


@given(
    st.builds(
        Basic.Properties,
        content_type=texts,
        content_encoding=texts,
        headers=st.dictionaries(texts, values, max_size=4),
        delivery_mode=st.sampled_from([None, 1, 2]),
        priority=st.none() | st.integers(0, 255),
        correlation_id=texts,
        reply_to=texts,
        expiration=texts,
        message_id=texts,
        timestamp=st.none() | moments,
        message_type=texts,
        user_id=texts,
        app_id=texts,
    )
)
def test_what_pamqp_can_read_is_read_as_pamqp_reads_it(written: Basic.Properties) -> None:
    raw = ContentHeader(properties=written).marshal()
    reference = ContentHeader()
    reference.unmarshal(raw)
    expected, found = reference.properties, read_properties(raw[12:])
    assert found.headers == (expected.headers or {})
    for name in ("content_type", "message_id", "timestamp", "message_type", "app_id"):
        assert getattr(found, name) == getattr(expected, name), name


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(*entries: bytes) -> bytes:
    return struct.pack(">I", len(b"".join(entries))) + b"".join(entries)


def properties(*given: tuple[int, bytes]) -> bytes:
    return struct.pack(">H", sum(1 << bit for bit, _ in given)) + b"".join(value for _, value in given)


KEPT, LAST = short(b"kept") + b"t\x01", short(b"last") + b"S" + table(b"text")


@given(st.binary(max_size=255), st.integers(0, 2**64 - 1), st.binary(max_size=255), st.booleans())
@example(b"a", 1_763_766_000_000_000, b"b", False)
def test_what_cannot_be_read_is_named_and_all_else_is_kept(
    content_type: bytes, moment: int, kind: bytes, broken: bool
) -> None:
    when = short(b"when") + b"T" + struct.pack(">Q", moment)
    headers = table(short(b"k\xffpt") + b"t\x01" if broken else KEPT, when, LAST)
    raw = properties(
        (15, short(content_type)), (13, headers), (12, b"\x02"), (6, struct.pack(">Q", moment)), (5, short(kind))
    )
    found = read_properties(raw)
    assert found.headers["k?pt" if broken else "kept"] is True
    assert found.headers["last"] == "text"
    try:
        ContentHeader().unmarshal(struct.pack(">HHQ", 60, 0, 5) + raw)
    except (ValueError, OverflowError):
        assert found.headers[UNREADABLE_HEADER]
    else:
        assert UNREADABLE_HEADER not in found.headers


@pytest.mark.parametrize(
    ("raw", "headers"),
    [
        (properties((13, table(KEPT, short(b"odd") + b"?", LAST))), {"kept": True, UNREADABLE_HEADER: "headers"}),
        (properties((13, table(short(b"t") + b"F" + table(short(b"\xff") + b"t\x01"), LAST))), {"last": "text"}),
        (properties((13, table(KEPT, short(b"x") + b"S\xff\xff\xff\xff"))), {"kept": True}),
        (properties((13, b"\x00\x00\x01\x00" + KEPT)), {"kept": True}),
        (properties((15, b"\xffshort")), {UNREADABLE_HEADER: "all that follows"}),
        (properties((6, b"\xff" * 8)), {UNREADABLE_HEADER: "timestamp"}),
        (properties((0, b"")), {UNREADABLE_HEADER: "all that follows"}),
        (b"", {UNREADABLE_HEADER: "all that follows"}),
    ],
    ids=["unknown type", "nested", "long text", "long table", "long property", "moment", "more flags", "none"],
)
def test_what_is_broken_is_read_as_far_as_it_goes(raw: bytes, headers: dict[str, object]) -> None:
    found = read_properties(raw).headers
    assert headers.items() <= found.items()
    assert found[UNREADABLE_HEADER]


@given(st.binary(max_size=200))
def test_reading_never_fails(raw: bytes) -> None:
    read_properties(raw)


@given(st.integers(0, 2**16 - 1), st.binary(max_size=200))
def test_reading_values_never_fails(flags: int, raw: bytes) -> None:
    read_properties(struct.pack(">H", flags & ~1) + raw)
