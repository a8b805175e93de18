"""JSON as bytes: judged as the standard library does, but for lone surrogates and depth, and cut without change."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.raw_json import MAX_DEPTH, json_fault, members

PIECES = [
    *(b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\t", b"\x0b", b"\x00", b"\xef\xbb\xbf", b"\xff", b"/"),
    *(b'"', b'"a"', b'"\\', b'\\n"', b"\\", b'"\\u00e9"', b'"\\ud83d\\ude00"', b'"\xc3\xa9"', b'"\\x"', b'"\\u12"'),
    *(b"0", b"-", b"1", b"01", b".", b"5", b"e", b"E+", b"1e999", b"true", b"tru", b"null", b"NaN", b"Infinity"),
]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def is_json(text: bytes) -> bool:
    """The standard library's judgement; constants that are no JSON refused, numbers not converted."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text.decode(), parse_constant=refuse, parse_int=str, parse_float=str)
    except ValueError:
        return False
    return True


def nested(depth: int, inside: bytes = b"") -> bytes:
    return b"[" * depth + inside + b"]" * depth


@given(st.lists(st.sampled_from(PIECES), max_size=9).map(b"".join))
@example(b"")
@example(b"1 2")
@example(b"[1,]")
@example(b'{"a":1,}')
@example(b'{"a":1,"a":2}')
@example(b'"\x7f"')
def test_it_judges_as_the_standard_library_does(text: bytes) -> None:
    assert (json_fault(text) is None) == is_json(text)


@given(st.binary())
def test_any_bytes_are_judged(text: bytes) -> None:
    fault = json_fault(text)
    assert fault is None or 0 < len(fault) <= 200


@pytest.mark.parametrize(
    "text", [b"12345678901234567890123", b"-" + b"9" * 100_000, b"1e999999", b"0." + b"3" * 100_000, b'"\\u0000"']
)
def test_numbers_of_any_size_and_escaped_nul_are_json(text: bytes) -> None:
    assert json_fault(text) is None


@pytest.mark.parametrize(
    "text",
    [b'"\\ud800"', b'"\\ud800 and more text"', b'"\\udc00 and more"', b'{"\\ud800 and more":1}', b'"\xed\xa0\x80"'],
)
def test_lone_surrogates_are_not_passed_on(text: bytes) -> None:
    """Grammatically RFC 8259 lets the escaped ones in, but most parsers stop at them, so no receiver could read it."""
    assert json_fault(text) is not None


class TestDepth:
    @pytest.mark.parametrize("inside", [b"", b'"[[[[{{{{"', b'"\\"[[["', b'{"[":"]"}'])
    def test_the_bound_is_exact(self, inside: bytes) -> None:
        allowed = MAX_DEPTH - (1 if inside.startswith(b"{") else 0)
        assert json_fault(nested(allowed, inside)) is None
        assert json_fault(nested(allowed + 1, inside)) == f"must be JSON that is nested at most {MAX_DEPTH} deep"

    def test_wide_is_not_deep(self) -> None:
        assert json_fault(b"[" + b",".join([b'{"a":[1,"[{"]}'] * 5000) + b"]") is None

    @pytest.mark.parametrize("text", [b"[" * 200_000, nested(100_000), b'{"a":' * 100_000 + b"1" + b"}" * 100_000])
    def test_what_is_far_too_deep_does_not_overflow(self, text: bytes) -> None:
        assert json_fault(text) is not None

    @given(JSON_VALUES)
    def test_it_counts_as_one_would_by_walking(self, value: object) -> None:
        def depth(part: object) -> int:
            inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
            return 0 if inner is None else 1 + max(map(depth, inner), default=0)

        text = json.dumps(value, ensure_ascii=False).encode("utf-8")
        around = MAX_DEPTH - depth(value)
        assert json_fault(nested(around, text)) is None
        assert json_fault(nested(around + 1, text)) is not None


class TestMembers:
    @given(st.dictionaries(st.text(), JSON_VALUES, max_size=5), st.sampled_from([None, 1, "\t"]))
    def test_each_is_the_slice_that_came(self, value: dict[str, object], indent: int | str | None) -> None:
        text = json.dumps(value, indent=indent).encode()
        cut = members(text)
        assert cut is not None
        assert {name: json.loads(raw) for name, raw in cut.items()} == value
        assert all(raw in text for raw in cut.values())

    def test_nothing_is_rewritten(self) -> None:
        text = b'{ "a" : 1.10 , "b":[ 1 ,2 ],"c":12345678901234567890123,"\\u0064":"\\u00e9" }'
        assert members(text) == {"a": b"1.10", "b": b"[ 1 ,2 ]", "c": b"12345678901234567890123", "d": b'"\\u00e9"'}

    def test_of_two_the_last_counts(self) -> None:
        assert members(b'{"a":1,"a":2}') == {"a": b"2"}

    @pytest.mark.parametrize("text", [b"[]", b"null", b"1", b'"a"', b'[{"a":1}]'])
    def test_other_values_have_none(self, text: bytes) -> None:
        assert members(text) is None
