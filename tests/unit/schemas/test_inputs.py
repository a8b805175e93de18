"""Pydantic's errors as ours, for models that are not subscriptions'."""

import pytest
from pydantic import Field, ValidationError

from schemas.errors import InvalidInput
from schemas.inputs import Input, invalid_input, read_input, rule


class Inner(Input):
    count: int = Field(ge=1)


class Outer(Input):
    name: str = Field(min_length=2, max_length=3)
    inner: Inner
    many: tuple[Inner, ...] = ()


def said(data: object) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        read_input(Outer, data)
    return [f"{problem.field}: {problem.message}" for problem in caught.value.problems]


def test_paths_are_dotted_and_messages_say_what_would_be_right() -> None:
    assert said({"name": "x", "inner": {"count": 0}, "many": [{"count": 1}, {"count": "x"}, {}, 5]}) == [
        "name: must have at least 2 characters",
        "inner.count: must be greater than or equal to 1",
        "many.1.count: must be a valid integer, unable to parse string as an integer",
        "many.2.count: is required",
        "many.3: must be an object",
    ]


def test_only_an_outer_unknown_field_is_answered_with_the_known_ones() -> None:
    assert said({"name": "abc", "inner": {"count": 1, "x": 1}, "y": 2}) == [
        "inner.x: is not a known field",
        "y: is not a known field; known are name, inner, many",
    ]


def test_without_a_model_an_unknown_field_is_only_named() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"name": "abc", "inner": {"count": 1}, "y": 2})
    assert str(invalid_input(caught.value)) == "y: is not a known field"


def test_a_rule_speaks_in_its_own_words() -> None:
    rule(None)
    with pytest.raises(ValueError, match=r"^must be \{round\}$"):
        rule("must be {round}")


def test_models_are_frozen() -> None:
    inner = Inner(count=1)
    with pytest.raises(ValidationError):
        inner.count = 2  # type: ignore[misc]
