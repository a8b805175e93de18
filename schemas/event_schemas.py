"""A JSON Schema that the data of events is checked against: read, compiled, and what is said of data that breaks it.

What is told names the place in the data and the rule in the schema, and never a value: the place can hold names that
the event's producer chose, so it is cut short. Of a name that is twice in an object the last counts.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

import jsonschema_rs
import msgspec

from schemas.errors import InvalidInput, Problem
from schemas.json_schema import DIALECT, MAX_SCHEMA_BYTES, MAX_STEPS, Weight, weigh
from schemas.raw_json import json_fault

_PATTERNS: Final = jsonschema_rs.RegexOptions(size_limit=262_144, dfa_size_limit=262_144)  # in bytes, of each
_MASK: Final = "it"  # in the text of an error, which would else be made of all of the data, for every branch of anyOf
_MAX_SHOWN: Final = 200
_MAX_DIGITS: Final = 100
# Numbers that take long to compare with, or that Python's floats do not hold. Also what looks so in a text.
_SUSPECT: Final = re.compile(rb"[0-9]{%d}|[0-9.][eE][+-]?[0-9]{3}" % (_MAX_DIGITS + 1))
_LIMITS: Final = frozenset(
    f"{bound}{what}" for bound in ("min", "max") for what in ("imum", "Length", "Items", "Properties")
) | {"exclusiveMinimum", "exclusiveMaximum"}
_TYPES: Final = {"array": "a list", "object": "an object", "integer": "an integer", "null": "null", "string": "text"}

_decoder = msgspec.json.Decoder()


class EventSchema:
    """A compiled schema."""

    __slots__ = ("_validator", "weight")

    def __init__(self, text: bytes) -> None:
        """Raises InvalidInput that names `schema`, or the place in it, for what is no schema or none that is taken."""
        if len(text) > MAX_SCHEMA_BYTES:
            raise InvalidInput.of("schema", f"must be at most {MAX_SCHEMA_BYTES} bytes")
        if fault := json_fault(text):
            raise InvalidInput.of("schema", fault)
        try:
            schema = json.loads(text)
        except ValueError:  # an integer of thousands of digits
            raise InvalidInput.of("schema", "must not have numbers that long") from None
        self.weight: Weight = weigh(schema)
        try:
            self._validator: Any = jsonschema_rs.Draft202012Validator(
                schema, validate_formats=False, pattern_options=_PATTERNS, offline=True, mask=_MASK
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            raise _refused(error) from None

    def fault(self, data: bytes) -> Problem | None:
        """The first rule that data, well-formed JSON, breaks; None for data that keeps them all."""
        if self.weight.steps(data) > MAX_STEPS:
            return Problem("data", "must be smaller: like this it cannot be checked against its schema in time")
        try:
            value = _value(data)
        except (ValueError, msgspec.MsgspecError):
            return Problem("data", f"must not have numbers of more than {_MAX_DIGITS} digits, or beyond 1e308")
        if self.weight.steps_to_tell(data) > MAX_STEPS and not self._validator.is_valid(value):
            return Problem("data", "must keep its schema: where it does not, takes too long to say of so much data")
        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            return _problem(error)
        return None


def _value(data: bytes) -> object:
    if _SUSPECT.search(data):
        return json.loads(data, parse_int=_integer, parse_float=_decimal)
    return _decoder.decode(data)


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError
    return int(text)


def _decimal(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _problem(error: jsonschema_rs.ValidationError) -> Problem:
    """Made of what the error is, since its text quotes values."""
    path = _dotted("data", error.instance_path)
    kind = error.kind
    match kind.name:
        case "required":
            path, message = _dotted(path, [kind.property]), "is required"  # type: ignore[attr-defined]
        case "additionalProperties" | "unevaluatedProperties":
            path, message = _dotted(path, kind.unexpected[:1]), "is not known to the schema, which takes no others"  # type: ignore[attr-defined]
        case "type":
            message = f"must be {' or '.join(_TYPES.get(one, f'a {one}') for one in kind.types)}"  # type: ignore[attr-defined]
        case "falseSchema":
            message = "must not have what the schema does not know, or forbids"
        case "enum":
            message = f"must be one of {_shown(kind.options[:_MAX_SHOWN])}"  # type: ignore[attr-defined]
        case "const":
            message = f"must be {_shown(kind.expected_value)}"  # type: ignore[attr-defined]
        case "pattern":
            message = f"must match the pattern {_shown(kind.pattern)}"  # type: ignore[attr-defined]
        case name if name in _LIMITS:
            message = f"must keep the {name} {str(kind.limit)[:40]}"  # type: ignore[attr-defined]
        case name:
            message = f"must keep the rule {name}"
    return Problem(path, f"{message} (#{_pointer(error.schema_path)})")


def _refused(error: Exception) -> InvalidInput:
    """Why a schema could not be compiled. What it says of the schema may be quoted: it is its author's."""
    if not isinstance(error, jsonschema_rs.ValidationError):
        return InvalidInput.of("schema", "must have a $ref only to a place in this schema")
    where = _dotted("schema", error.instance_path)
    if error.kind.name == "format":
        return InvalidInput.of(
            where,
            "must be a regular expression that takes linear time, and is not too large: "
            "without look-ahead, look-behind and backreferences",
        )
    if error.kind.name == "$ref":
        return InvalidInput.of(where, "must have a $ref only to a place in this schema")
    return InvalidInput.of(where, f"must be as {DIALECT} has it (rule {_pointer(error.schema_path)})")


def _shown(value: object) -> str:
    """A value of the schema."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _dotted(start: str, path: Sequence[str | int]) -> str:
    text = ".".join([start, *(ascii(str(part))[1:-1] for part in path)])
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _pointer(path: Sequence[str | int]) -> str:
    return "".join(f"/{ascii(str(part))[1:-1]}" for part in path)[:_MAX_SHOWN]
