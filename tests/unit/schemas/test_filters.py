"""What a filter may say: every fault is told by its place, and every bound holds."""

from decimal import Decimal
from typing import Any

import pytest

from schemas.errors import InvalidInput
from schemas.filters import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NAMES,
    MAX_NODES,
    MAX_PATH,
    MAX_TEXT,
    AllOf,
    AnyOf,
    Condition,
    Not,
    Operator,
    read_filter,
)
from schemas.inputs import read_input
from schemas.subscriptions import SubscriptionCreate


def nested(depth: int) -> dict[str, Any]:
    given: dict[str, Any] = {"data.a": 1}
    for _ in range(depth):
        given = {"$not": given}
    return given


def test_a_filter_is_read_as_what_it_says() -> None:
    given = {"type": "a.b", "$or": [{"data.n": {"$gte": 0.1, "$lt": 5}}, {"$not": {"data.t": {"$in": ["x", None]}}}]}
    assert read_filter(given) == AllOf(
        (
            Condition("type", ("type",), Operator.EQ, "a.b"),
            AnyOf(
                (
                    AllOf(
                        (
                            Condition("$or.0.data.n.$gte", ("data", "n"), Operator.GTE, Decimal("0.1")),
                            Condition("$or.0.data.n.$lt", ("data", "n"), Operator.LT, 5),
                        )
                    ),
                    Not(Condition("$or.1.$not.data.t.$in", ("data", "t"), Operator.IN, ("x", None))),
                )
            ),
        )
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "must be an object with at least one condition"),
        ({}, "must be an object with at least one condition"),
        ({"$or": [{"data.a": 1}, {}]}, "at $or.1: must be an object with"),
        ({"$and": []}, "at $and: must be a list of at least one filter"),
        ({"$not": [{"data.a": 1}]}, "at $not: must be an object"),
        ({"$nor": [{"data.a": 1}]}, "at $nor: must be type, source, subject, id, time, tenant, data, a path"),
        ({"amount": 5}, "at amount: must be type"),
        ({"type.a": "x"}, "at type.a: must be type"),
        ({"data..a": 1}, "at data..a: must have a name between its dots"),
        ({"data.a\x00": 1}, "at data.a\\x00: must be a path"),
        ({"data.a": {}}, "at data.a: must have an operator"),
        ({"data.a": {"b": 1}}, "at data.a: must be a value, or an object of operators, which are $eq, $neq"),
        ({"data.a": [1]}, "at data.a: must be a string, a number, true, false or null"),
        ({"data.a": {"$gt": None}}, "at data.a.$gt: must be a string or a number"),
        ({"data.a": {"$lte": True}}, "at data.a.$lte: must be a string or a number"),
        ({"data.a": {"$in": "x"}}, "at data.a.$in: must be a list of at least one value"),
        ({"data.a": {"$nin": []}}, "at data.a.$nin: must be a list of at least one value"),
        ({"data.a": {"$nin": [[]]}}, "at data.a.$nin: must be a string, a number"),
        ({"data.a": {"$startsWith": 1}}, "at data.a.$startsWith: must be a string"),
        ({"data.a": {"$exists": 1}}, "at data.a.$exists: must be true or false"),
        ({"data.a": "\x00"}, "at data.a: must be at most 1000 characters, none of them NUL"),
        ({"data.a": 2**64}, "at data.a: must be an integer of at most 64 bits"),
        ({"data.a": 1e16}, "at data.a: must be an integer of at most 64 bits"),
        ({"data.a": float("inf")}, "at data.a: must be an integer of at most 64 bits"),
        ({"subject": None}, "at subject: must be a string, as every subject is"),
        ({"time": "yesterday"}, "at time: must be a time of RFC 3339"),
        ({"time": {"$startsWith": "2026"}}, "at time.$startsWith: cannot be asked of time"),
    ],
)
def test_a_fault_is_told_by_its_place(given: object, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_filter(given)
    (problem,) = caught.value.problems
    assert problem.field == "filter"
    assert problem.message.startswith(message)


@pytest.mark.parametrize(
    ("fits", "too_much"),
    [
        (nested(MAX_DEPTH), nested(MAX_DEPTH + 1)),
        ({"data.a": "x" * MAX_TEXT}, {"data.a": "x" * (MAX_TEXT + 1)}),
        ({"data." + "a" * (MAX_PATH - 5): 1}, {"data." + "a" * (MAX_PATH - 4): 1}),
        ({"data" + ".a" * (MAX_NAMES - 1): 1}, {"data" + ".a" * MAX_NAMES: 1}),
        ({"data.a": {"$in": [1] * (MAX_NODES - 1)}}, {"data.a": {"$in": [1] * MAX_NODES}}),
        ({"$or": [{"data.a": 1}] * (MAX_NODES - 1)}, {"$or": [{"data.a": 1}] * MAX_NODES}),
        ({"data.a": {"$in": ["x" * 990] * 16}}, {"data.a": {"$in": ["x" * 990] * (MAX_BYTES // 990 + 1)}}),
        ({"data.a": 2**64 - 1, "data.b": -(2**63)}, {"data.a": -(2**63) - 1}),
    ],
)
def test_a_bound_is_the_last_that_fits(fits: object, too_much: object) -> None:
    read_filter(fits)
    with pytest.raises(InvalidInput):
        read_filter(too_much)


def test_what_is_nested_without_end_is_refused_and_not_followed() -> None:
    with pytest.raises(InvalidInput, match="deep"):
        read_filter(nested(900))


def test_a_subscription_keeps_it_as_it_came_and_names_the_field() -> None:
    wanted = {"url": "https://example.com", "event_types": ["#"]}
    given = {"data.n": {"$gt": 5}}
    assert read_input(SubscriptionCreate, wanted | {"filter": given}).filter == given
    assert read_input(SubscriptionCreate, wanted | {"filter": None}).filter is None
    for wrong, message in (([], "must be an object"), ({"n": 1}, "at n: must be")):
        with pytest.raises(InvalidInput) as caught:
            read_input(SubscriptionCreate, wanted | {"filter": wrong})
        assert [problem.field for problem in caught.value.problems] == ["filter"]
        assert caught.value.problems[0].message.startswith(message)
