"""Filters of subscriptions: what one may say, read and bounded. What it means to an event: `dispatcher.core.filter`.

A filter is a JSON object, and all of its members have to hold:

- `"<path>": <value>`, short for `{"$eq": <value>}`; or `"<path>": {"<operator>": <operand>, …}`, all of which have to
  hold. A path is `type`, `source`, `subject`, `id`, `time` or `tenant` of the event, or `data`, or a place in that with
  dots between the names (`data.order.lines.0.sku`). A name that has a dot in it cannot be told.
- `"$and"` and `"$or"`: a list of filters. `"$not"`: a filter.

Operands: of `$eq` and `$neq` a string, number, boolean or null; of `$gt $gte $lt $lte` a string or number; of `$in`
and `$nin` a list of what `$eq` takes; of `$startsWith` and `$endsWith` a string; of `$exists` a boolean. What an
event's own fields are compared with is a string, of `time` one that is a time by RFC 3339.

A number is an integer of at most 64 bits, or has at most 15 significant digits; one that a reader of JSON would round
is refused where that can be told, rather than compared as something else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, NoReturn

import orjson

from schemas.errors import InvalidInput
from schemas.fields import parse_time

MAX_DEPTH: Final = 5  # of $and, $or and $not in each other
MAX_NODES: Final = 100  # conditions, members of $in and $nin, and each $and, $or and $not
MAX_TEXT: Final = 1000  # characters of a string
MAX_PATH: Final = 256  # characters of a path
MAX_NAMES: Final = 16  # of a path: each may be looked for in as many values as a path may lead to
MAX_BYTES: Final = 16_384  # of all of it, as JSON

_EXACT: Final = 2**53  # from here on a float may stand for several integers


class Operator(StrEnum):
    """What a condition asks of the values at its path."""

    EQ = "$eq"
    NEQ = "$neq"
    GT = "$gt"
    GTE = "$gte"
    LT = "$lt"
    LTE = "$lte"
    IN = "$in"
    NIN = "$nin"
    STARTS_WITH = "$startsWith"
    ENDS_WITH = "$endsWith"
    EXISTS = "$exists"


Scalar = str | int | Decimal | bool | datetime | None
FIELDS: Final = ("type", "source", "subject", "id", "time", "tenant")

_AND, _OR, _NOT = "$and", "$or", "$not"
_LISTS: Final = (Operator.IN, Operator.NIN)
_ORDERS: Final = (Operator.GT, Operator.GTE, Operator.LT, Operator.LTE)
_AFFIXES: Final = (Operator.STARTS_WITH, Operator.ENDS_WITH)


@dataclass(frozen=True, slots=True)
class Condition:
    """What is asked of the values at `path`. `where` is its place in the filter; $in and $nin have several operands."""

    where: str
    path: tuple[str, ...]
    operator: Operator
    operand: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: "Node"


Node = Condition | AllOf | AnyOf | Not


def read_filter(given: object) -> Node:
    """A filter from its JSON. Raises InvalidInput that says where the fault is and what would be right."""
    node = _Reader().filter(given, "", 0)
    if len(orjson.dumps(given)) > MAX_BYTES:
        _fault("", f"must be at most {MAX_BYTES} bytes of JSON")
    return node


class _Reader:
    """Reads one filter, and counts what it has."""

    def __init__(self) -> None:
        self._nodes = 0

    def filter(self, given: object, where: str, depth: int) -> Node:
        if not isinstance(given, Mapping) or not given:
            _fault(where, "must be an object with at least one condition")
        parts = [self._member(name, value, _under(where, name), depth) for name, value in given.items()]
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _member(self, name: str, value: object, where: str, depth: int) -> Node:
        if name in {_AND, _OR, _NOT}:
            self._count(where)
            if depth == MAX_DEPTH:
                _fault(where, f"must be at most {MAX_DEPTH} deep in {_AND}, {_OR} and {_NOT}")
        if name == _NOT:
            return Not(self.filter(value, where, depth + 1))
        if name in {_AND, _OR}:
            if not isinstance(value, list) or not value:
                _fault(where, "must be a list of at least one filter")
            parts = tuple(self.filter(one, f"{where}.{number}", depth + 1) for number, one in enumerate(value))
            return AllOf(parts) if name == _AND else AnyOf(parts)
        path = _path(name, where)
        if not isinstance(value, Mapping):
            return self._condition(path, Operator.EQ, value, where)
        if not value:
            _fault(where, "must have an operator")
        conditions = [self._operator(path, operator, operand, where) for operator, operand in value.items()]
        return conditions[0] if len(conditions) == 1 else AllOf(tuple(conditions))

    def _operator(self, path: tuple[str, ...], name: str, operand: object, where: str) -> Condition:
        try:
            operator = Operator(name)
        except ValueError:
            _fault(where, f"must be a value, or an object of operators, which are {', '.join(Operator)}")
        return self._condition(path, operator, operand, f"{where}.{operator}")

    def _condition(self, path: tuple[str, ...], operator: Operator, operand: object, where: str) -> Condition:
        self._count(where)
        if operator is Operator.EXISTS:
            if not isinstance(operand, bool):
                _fault(where, "must be true or false")
            return Condition(where, path, operator, operand)
        if operator in _LISTS:
            if not isinstance(operand, list) or not operand:
                _fault(where, "must be a list of at least one value")
            self._count(where, len(operand))
            return Condition(where, path, operator, tuple(_operand(path, operator, one, where) for one in operand))
        return Condition(where, path, operator, _operand(path, operator, operand, where))

    def _count(self, where: str, more: int = 1) -> None:
        self._nodes += more
        if self._nodes > MAX_NODES:
            _fault(where, f"the filter must have at most {MAX_NODES} conditions and values of lists in all")


def _path(name: str, where: str) -> tuple[str, ...]:
    path = tuple(name.split("."))
    if len(name) > MAX_PATH or "\x00" in name:
        _fault(where, f"must be a path of at most {MAX_PATH} characters, none of them NUL")
    if path[0] != "data" and name not in FIELDS:
        _fault(where, f"must be {', '.join(FIELDS)}, data, a path that begins with data., {_AND}, {_OR} or {_NOT}")
    if not all(path):
        _fault(where, "must have a name between its dots")
    if len(path) > MAX_NAMES:
        _fault(where, f"must be a path of at most {MAX_NAMES} names")
    return path


def _operand(path: tuple[str, ...], operator: Operator, given: object, where: str) -> Scalar:
    value = _scalar(given, where)
    if path[0] != "data":
        return _of_field(path[0], operator, value, where)
    if operator in _AFFIXES and not isinstance(value, str):
        _fault(where, "must be a string")
    if operator in _ORDERS and (value is None or isinstance(value, bool)):
        _fault(where, "must be a string or a number")
    return value


def _of_field(field: str, operator: Operator, value: Scalar, where: str) -> Scalar:
    """What one of the event's own fields is compared with."""
    if not isinstance(value, str):
        _fault(where, f"must be a string, as every {field} is")
    if field != "time":
        return value
    if operator in _AFFIXES:
        _fault(where, "cannot be asked of time, which is compared as a moment")
    moment = parse_time(value)
    if moment is None:
        _fault(where, "must be a time of RFC 3339 with its zone, as 2026-01-31T12:00:00Z")
    return moment


def _scalar(given: object, where: str) -> Scalar:
    if isinstance(given, str):
        if len(given) > MAX_TEXT or "\x00" in given:
            _fault(where, f"must be at most {MAX_TEXT} characters, none of them NUL")
        return given
    if given is None or isinstance(given, bool):
        return given
    if isinstance(given, float) and -_EXACT < given < _EXACT:
        return Decimal(repr(given))  # the digits as they were written, not what is nearest to them in binary
    if not isinstance(given, int | float):
        _fault(where, "must be a string, a number, true, false or null")
    if isinstance(given, float) or not -(2**63) <= given < 2**64:
        _fault(where, "must be an integer of at most 64 bits, or a number of at most 15 significant digits")
    return given


def _under(where: str, name: str) -> str:
    """A place in the filter; of a name that the caller made up, as much as may stand in a message."""
    shown = ascii(name)[1:-1][:80]
    return f"{where}.{shown}" if where else shown


def _fault(where: str, message: str) -> NoReturn:
    raise InvalidInput.of("filter", f"at {where}: {message}" if where else message)
