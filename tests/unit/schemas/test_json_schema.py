"""Which schemas are taken, and that what they may cost is known beforehand."""

import json
from typing import Any

import pytest

from schemas.errors import InvalidInput
from schemas.json_schema import MAX_STEPS, Weight, repeated, weigh

REFUSED: dict[str, tuple[Any, str, str]] = {
    "no schema": ([1], "schema", "must be a JSON Schema"),
    "another draft": ({"$schema": "http://json-schema.org/draft-07/schema#"}, "schema.$schema", "2020-12"),
    "a draft inside": ({"properties": {"a": {"$schema": "x"}}}, "schema.properties.a.$schema", "is not taken here"),
    "elsewhere": ({"$ref": "https://example.com/a"}, "schema.$ref", "nothing is fetched"),
    "by a name": ({"$dynamicRef": "#a"}, "schema.$dynamicRef", "is not taken here"),
    "a base inside": ({"items": {"$id": "https://example.com/a"}}, "schema.items.$id", "is not taken here"),
    "nowhere": ({"$ref": "#/$defs/a"}, "schema.$ref", "must lead to a place"),
    "a place that no list has": ({"allOf": [True], "not": {"$ref": "#/allOf/²"}}, "schema.not.$ref", "must lead to"),
    "itself": ({"$ref": "#"}, "schema", "must not refer to itself"),
    "itself, further down": (
        {"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
        "schema.$defs.a",
        "must not refer to itself",
    ),
    "itself by a property": ({"properties": {"not": {"$ref": "#/properties"}}}, "schema.properties.not", "to itself"),
    "a long pattern": ({"pattern": "a" * 257}, "schema.pattern", "at most 256 characters"),
    "a pattern that counts far": ({"pattern": "(a{0,9}b){20}"}, "schema.pattern", "must not count so far"),
    "a pattern with spaces": ({"pattern": "(?ix)((. {0,60} a) {9} b) {9}"}, "schema.pattern", "not have the flag x"),
    "a name that counts far": ({"patternProperties": {"a{200}": True}}, "schema.patternProperties", "not count so far"),
    "many patterns": ({"properties": {f"a{n}": {"pattern": "a"} for n in range(33)}}, "schema", "at most 32 patterns"),
    "many rules": ({"items": {"anyOf": [{"const": n} for n in range(400)]}}, "schema.items", "must not be so large"),
    "many properties": ({"properties": {f"a{n}": {} for n in range(2001)}}, "schema", "must not be so large"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_taken_is_named(case: str) -> None:
    schema, field, message = REFUSED[case]
    with pytest.raises(InvalidInput) as refused:
        weigh(schema)
    (problem,) = refused.value.problems
    assert problem.field == field
    assert message in problem.message


def doubled(levels: int) -> dict[str, Any]:
    """Each level refers to the next one twice: its text grows with the levels, and its checks double."""
    steps = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": steps | {f"d{levels}": {"const": 1}}, "$ref": "#/$defs/d0"}


def test_what_doubles_with_each_level_is_too_large_long_before_it_is_slow() -> None:
    assert weigh(doubled(4)).of_value > 2 * weigh(doubled(3)).of_value - 20
    with pytest.raises(InvalidInput, match="must not be so large"):
        weigh(doubled(14))


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_referred_to_counts_for_the_depth_in_whatever_order_it_is_met(order: int) -> None:
    steps = {f"d{n:02}": {"items": {"$ref": f"#/$defs/d{n + 1:02}"}} for n in range(40)}
    turned = dict(sorted((steps | {"d40": {}}).items())[::order])
    with pytest.raises(InvalidInput, match="nested at most 32 deep"):
        weigh({"$defs": turned})


def test_a_value_has_one_name_and_meets_the_rules_of_one_property() -> None:
    one = weigh({"properties": {"a": {"enum": ["x", "y"]}}})
    many = weigh({"properties": {f"a{n}": {"enum": ["x", "y"]} for n in range(50)}})
    assert many.of_value == one.of_value
    assert many.of_object == 50
    assert weigh({"allOf": [{"minLength": n} for n in range(50)]}).of_value > 50


def test_an_x_that_is_no_flag_is_taken() -> None:
    assert weigh({"pattern": r"^\(?x(?P<x>y)(?i)x$"}).patterns == 1


def test_steps_grow_with_the_data() -> None:
    weight = Weight(of_value=3, of_object=5, patterns=1)
    assert weight.steps(b"1") == 3
    assert weight.steps(b'{"a":[1,2],"b":{}}') == 3 * 6 + 5 * 2 + 18 // 4


def test_a_usual_schema_takes_events_of_any_size() -> None:
    row = {
        "type": "object",
        "required": ["a"],
        "properties": {f"c{n}": {"type": "string", "maxLength": 50} for n in range(50)},
    }
    weight = weigh({"type": "object", "properties": {"rows": {"type": "array", "items": row}}})
    rows = [{f"c{n}": "some text" for n in range(50)} for _ in range(250)]
    data = json.dumps({"rows": rows}).encode()
    assert len(data) > 200_000
    assert weight.steps(data) < MAX_STEPS


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        (r"^\w+$", 1),
        ("^[A-Z]{2}[0-9]{2}[A-Z0-9]{1,30}$", 34),
        (r"^(\d{1,3}\.){3}\d{1,3}$", 15),
        ("(a{0,100}){2}", 200),
        ("((ab){3}c){2}", 14),
        (r"[]\]{9}]{2}", 2),
        (r"\{9}", 3),
        ("a{2,}", 2),
        ("a{99999999999}", 999_999),
        (")(((", 1),
        ("[", 1),
    ],
)
def test_what_a_pattern_has_with_its_counts_written_out(pattern: str, parts: int) -> None:
    assert repeated(pattern) == parts


@pytest.mark.parametrize(
    ("pattern", "quarters"),
    [
        ("^[a-z]{1,60}$", 1),
        (r"^(\d{1,3}\.){3}\d{1,3}$", 1),
        ("a", 5),
        ("^a+$", 5),
        ("^.{0,}a$", 9),
        ("^a|b$", 9),
        ("(.{0,60}a){2}z", 1 + 4 * 123),
        ("^?(.{0,60}a){2}z", 1 + 4 * 123),
        ("^{0}(.{0,60}a){2}z", 1 + 4 * 123),
    ],
)
def test_a_pattern_that_may_go_on_anywhere_costs_all_its_parts_for_each_byte(pattern: str, quarters: int) -> None:
    assert weigh({"pattern": pattern}).patterns == quarters
    assert weigh({"patternProperties": {pattern: True}}).patterns == quarters


def test_numbers_that_are_long_cost_more() -> None:
    weight = Weight(of_value=2)
    assert weight.steps(b"[%b,1]" % (b"1" * 30)) == weight.steps(b"[3,1]") + 2 * 100


@pytest.mark.parametrize("number", [b"12345678901234.5", b"1e300", b"1.5E-10", b"9" * 19])
def test_a_multiple_of_takes_longer_for_what_has_many_digits_or_a_high_power(number: bytes) -> None:
    """Of 0.01, a million numbers like these took 20 s."""
    weight = weigh({"items": {"multipleOf": 0.01}})
    assert weight.steps(b"[%b,1]" % number) >= weight.steps(b"[3,1]") + 60 * 100
    assert weigh({"items": {}}).steps(b"[1e300,1]") == weigh({"items": {}}).steps(b"[3,1]")


def test_a_multiple_of_what_is_next_to_nothing_takes_long_for_every_number() -> None:
    assert weigh({"multipleOf": 1e-300}).of_value > weigh({"multipleOf": 0.0001}).of_value + 1000


def test_unique_items_of_integers_that_are_long_are_compared_each_with_each() -> None:
    """3,000 beyond 2**63 took 4 s."""
    unique, texts = weigh({"items": {"uniqueItems": True}}), [b"%d" % (2**63 + n) for n in range(3000)]
    assert unique.steps(b"[[%b]]" % b",".join(texts)) > MAX_STEPS
    assert unique.steps(b"[[%b]]" % b",".join(texts[:100])) < MAX_STEPS
    assert unique.steps(b"[[%b]]" % b",".join(b"%d" % (2**62 + n) for n in range(500))) < MAX_STEPS
    near = [b"%d" % (9 * 10**17 + n) for n in range(6000)]  # many of them are one number of 53 bits
    assert unique.steps(b"[[%b]]" % b",".join(near)) > MAX_STEPS
    assert unique.steps(b"[[%b]]" % b",".join(b"%d" % n for n in range(30_000))) < MAX_STEPS
