"""What a filter means: a table of cases, and a plain evaluator that it has to agree with."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.filter import MAX_VALUES, Facts, Filter, Told
from dispatcher.core.request import Content
from schemas.filters import read_filter

TIME = datetime(2026, 1, 31, 12, tzinfo=UTC)


def facts(data: bytes, subject: str | None = "s-1") -> Facts:
    return Facts("acme", Content("order.created", TIME, data, "shop", "e-1", subject))


def truth(wanted: dict[str, Any], event: Facts) -> bool | None:
    """By what lets through: the filter, its opposite, or neither of them."""
    if Filter(read_filter(wanted)).matches(event):
        return True
    return False if Filter(read_filter({"$not": wanted})).matches(event) else None


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        # Numbers are exact, and as numbers.
        (1, "1.0", True),
        (0.1, "0.1", True),
        (0.1, "0.10000000000000001", False),
        (9007199254740993, "9007199254740992", False),
        ({"$lt": 9007199254740993}, "9007199254740992.5", True),
        ({"$gt": 18446744073709551615}, "12345678901234567890123", True),
        ({"$gt": 5}, "1e999999999999", True),
        ({"$gt": 5}, "1e99999999999999999999", None),
        ({"$gt": 5}, "9" * 5000, None),
        # Unlike types.
        (1, '"1"', None),
        (1, "true", None),
        (True, "1", None),
        ({"$neq": 1}, '"1"', None),
        ({"$gt": 1}, '"2"', None),
        ({"$gt": "a"}, "null", None),
        ({"$startsWith": "a"}, "1", None),
        ({"$eq": "a"}, "{}", None),
        # Null.
        (None, "null", True),
        (None, "0", False),
        (None, "{}", False),
        ({"$neq": None}, "{}", True),
        ({"$neq": "paid"}, "null", True),
        ({"$nin": ["paid"]}, "null", True),
        # Members of several types.
        ({"$in": ["a", 1]}, '"a"', True),
        ({"$nin": ["a", 1]}, '"b"', True),
        ({"$nin": ["a", 1]}, "true", None),
        ({"$nin": ["a", None]}, "1", None),
        ({"$nin": [None]}, "1", True),
        # Strings.
        ({"$gt": "a", "$lte": "b"}, '"aa"', True),
        ({"$startsWith": "Ab"}, '"ab"', False),
        ({"$endsWith": "é"}, '"caf\\u00e9"', True),
        # Lists stand for their elements.
        ("b", '["a", "b"]', True),
        ({"$neq": "b"}, '["a", "c"]', True),
        ({"$neq": "b"}, '["a", 1]', None),
        ({"$gt": 5, "$lt": 1}, "[0, 10]", True),
        ("a", "[]", False),
        ({"$nin": ["a"]}, "[]", True),
        ("a", '[["a"]]', None),
        ({"$exists": True}, "[]", True),
        ({"$exists": False}, "null", False),
        (1, "[" + "0," * (MAX_VALUES - 1) + "1]", True),
        (1, "[" + "0," * MAX_VALUES + "1]", None),
    ],
)
def test_a_condition_on_a_value(condition: object, value: str, expected: bool | None) -> None:
    assert truth({"data.v": condition}, facts(b'{"v":' + value.encode() + b"}")) is expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"data.lines.sku": "B"}, True),
        ({"data.lines.sku": {"$neq": "C"}}, None),  # one line has none
        ({"data.lines.0.sku": {"$neq": "C"}}, True),
        ({"data.lines.7.sku": "A"}, None),
        ({"data.lines.sku": {"$exists": True}}, True),
        ({"data.none.sku": {"$exists": False}}, True),
        ({"data.none": {"$neq": 1}}, None),
        ({"data.n.deeper": 1}, None),
        ({"data.0": 1}, None),
        ({"data": {"$exists": True}}, True),
        ({"data.twice": 2}, True),
        ({"type": {"$startsWith": "order."}, "source": "shop", "id": "e-1", "tenant": "acme"}, True),
        ({"subject": {"$in": ["s-1", "s-2"]}}, True),
        ({"time": "2026-01-31T13:00:00+01:00"}, True),
        ({"time": {"$gt": "2026-01-31T12:00:00.000001Z"}}, False),
        ({"$or": [{"data.none": 1}, {"data.n": 1}]}, True),
        ({"$or": [{"data.none": 1}, {"data.n": 2}]}, None),
        ({"$and": [{"data.none": 1}, {"data.n": 2}]}, False),
        ({"$not": {"$not": {"data.none": 1}}}, None),
    ],
)
def test_a_filter_of_an_event(wanted: dict[str, Any], expected: bool | None) -> None:
    event = facts(b'{"n": 1, "lines": [{"sku": "A"}, {"sku": "B"}, {}], "twice": 1, "twice": 2}')
    assert truth(wanted, event) is expected


def test_an_event_without_a_subject_has_none() -> None:
    event = facts(b"1", subject=None)
    assert truth({"subject": {"$exists": False}}, event) is True
    assert truth({"subject": {"$neq": "s-1"}}, event) is None


def test_data_is_read_when_it_is_asked_for_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    def reading(data: bytes) -> object:
        read.append(data)
        return json.loads(data)

    monkeypatch.setattr("dispatcher.core.filter._read", reading)
    event = facts(b'{"a": 1}')
    assert truth({"type": "order.created"}, event) is True
    assert read == []
    assert [truth({"data.a": 1}, event), truth({"data.b": 1}, event)] == [True, None]
    assert len(read) == 1


def test_data_that_is_no_json_cannot_be_told() -> None:
    assert truth({"data.a": {"$exists": False}}, facts(b"{")) is None


def test_one_that_cannot_be_read_matches_nothing() -> None:
    nothing = Filter(None)
    assert (nothing.matches(facts(b"1")), nothing.explain(facts(b"1"))) == (False, [])


def test_what_nobody_foresaw_does_not_match_and_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("dispatcher.core.filter._follow", broken)
    assert truth({"data.a": {"$exists": False}}, facts(b"{}")) is None


def test_each_condition_is_explained_by_its_place() -> None:
    wanted = Filter(read_filter({"$not": {"data.a": 1}, "$or": [{"data.b": "x"}, {"data.c": {"$gt": 1}}]}))
    assert wanted.explain(facts(b'{"a": 1, "b": "y"}')) == [
        Told("$not.data.a", True),
        Told("$or.0.data.b", False),
        Told("$or.1.data.c.$gt", None),
    ]


# The plain evaluator: three sets of answers, straight from the words of the module's docstring.

NAMES = st.sampled_from(["a", "b", "0"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.5, 1.0, 1.5]),
    st.sampled_from(["", "a", "ab", "b"]),
)
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)
TEXT_OR_NUMBER = SCALARS.filter(lambda one: one is not None and not isinstance(one, bool))
CONDITIONS = st.one_of(
    SCALARS,
    st.tuples(st.sampled_from(["$eq", "$neq"]), SCALARS),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), TEXT_OR_NUMBER),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["$startsWith", "$endsWith"]), st.sampled_from(["", "a", "b"])),
    st.tuples(st.just("$exists"), st.booleans()),
).map(lambda one: dict([one]) if isinstance(one, tuple) else one)
PATHS = st.lists(NAMES, max_size=3).map(lambda names: ".".join(["data", *names]))
FILTERS = st.recursive(
    st.dictionaries(PATHS, CONDITIONS, min_size=1, max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$not": inner}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
    ),
    max_leaves=4,
)


class Nowhere:
    pass


def places(value: Any, names: list[str]) -> list[Any]:
    if not names:
        return [value]
    name, rest = names[0], names[1:]
    if isinstance(value, dict):
        return places(value[name], rest) if name in value else [Nowhere()]
    if isinstance(value, list) and name == "0":
        return places(value[0], rest) if value else [Nowhere()]
    if isinstance(value, list):
        return [found for one in value for found in (places(one, names) if isinstance(one, dict) else [Nowhere()])]
    return [Nowhere()]


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | Fraction) else type(value).__name__


def equal(value: Any, operand: Any) -> bool | None:
    if isinstance(value, Nowhere):
        return None
    if value is None or operand is None:
        return value is None and operand is None
    return bool(value == operand) if kind(value) == kind(operand) else None


def among(value: Any, operands: list[Any]) -> bool | None:
    told = [
        equal(value, one) for one in operands if one is not None or value is None or operands == [None] * len(operands)
    ]
    known = [one for one in told if one is not None]
    return (True in known) if known else (False if value is None else None)


def single(name: str, value: Any, operand: Any) -> bool | None:
    if name == "$in":
        return among(value, operand)
    if name == "$eq":
        return equal(value, operand)
    if kind(value) != kind(operand) or kind(value) not in ("number", "str"):
        return None
    tests: dict[str, Callable[[], bool]] = {
        "$gt": lambda: value > operand,
        "$gte": lambda: value >= operand,
        "$lt": lambda: value < operand,
        "$lte": lambda: value <= operand,
        "$startsWith": lambda: str(value)[: len(operand)] == operand,
        "$endsWith": lambda: operand == "" or str(value)[-len(operand) :] == operand,
    }
    return tests[name]()


def opposite(told: bool | None) -> bool | None:
    return None if told is None else not told


def one_of(told: list[bool | None]) -> bool | None:
    return True if True in told else None if None in told else False


def all_of(told: list[bool | None]) -> bool | None:
    return False if False in told else None if None in told else True


def plain(wanted: dict[str, Any], data: Any) -> bool | None:
    told: list[bool | None] = []
    for name, value in wanted.items():
        if name == "$not":
            told.append(opposite(plain(value, data)))
        elif name in ("$and", "$or"):
            told.append((all_of if name == "$and" else one_of)([plain(part, data) for part in value]))
        else:
            asked = value if isinstance(value, dict) else {"$eq": value}
            found = places(data, name.split(".")[1:])
            told += [asked_of(found, operator, exact(operand)) for operator, operand in asked.items()]
    return all_of(told)


def asked_of(found: list[Any], name: str, operand: Any) -> bool | None:
    if name == "$exists":
        return any(not isinstance(one, Nowhere) for one in found) is bool(operand)
    if name in ("$neq", "$nin"):
        return opposite(asked_of(found, {"$neq": "$eq", "$nin": "$in"}[name], operand))
    elements = [each for one in found for each in (one if isinstance(one, list) else [one])]
    return one_of([single(name, one, operand) for one in elements])


def exact(value: Any) -> Any:
    if isinstance(value, list):
        return [exact(one) for one in value]
    return Fraction(repr(value)) if isinstance(value, float) else value


@settings(max_examples=300, deadline=None)
@given(wanted=FILTERS, data=DATA)
def test_it_agrees_with_a_plain_evaluator(wanted: dict[str, Any], data: Any) -> None:
    text = json.dumps(data)
    assert truth(wanted, facts(text.encode())) is plain(wanted, json.loads(text, parse_float=Fraction))
