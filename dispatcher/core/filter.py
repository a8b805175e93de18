"""Whether an event is one that a subscription's filter asks for. Fails closed: what cannot be told does not match.

A condition holds, does not hold, or cannot be evaluated; the last is no error, and goes through `$and`, `$or` and
`$not` as the unknown of three-valued logic does. Only a filter that holds lets an event through. So nothing is
delivered because it could not be compared, under `$not` neither: `{"$not": {"data.n": {"$gt": 5}}}` lets through n = 3,
and not n = "3", nor an event without n. Who wants those too says so: `{"$or": [{"data.n": {"$exists": false}}, …]}`.

- **Types.** Only like is compared with like: numbers, strings, booleans. Unlike types, objects, and a path that leads
  nowhere cannot be evaluated. But null is equal to null and to nothing else, which is known of every value that is
  there. `$in` and `$nin` can be evaluated where a member is of the value's type, the value is null, or all members are.
- **Numbers** are exact, integers of any size and decimals alike: 1 equals 1.0, and 12345678901234567890123 does not
  equal 12345678901234567890124. Data with an integer of more than 4,300 digits cannot be read.
- **Strings** are compared by code points, with upper and lower case told apart; `time` as a moment.
- **Lists.** A name leads into each object of a list, a number to the element at that place (from 0). A value that is a
  list stands for its elements, not for those of lists in it. A condition holds if it does for one of the values, and
  two conditions may be met by two of them. `$neq` and `$nin` are the `$not` of `$eq` and `$in`: none of the values is
  that. Of an empty list no value is anything. More than 200 values at a path cannot be evaluated.
- `$exists`: the path leads somewhere, be it to null or an empty list. An event without a subject has no `subject`.
- Of a name that is twice in an object the last counts.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, assert_never

import msgspec

from dispatcher.core.request import Content
from schemas.filters import AllOf, AnyOf, Condition, Node, Not, Operator, Scalar

Truth = bool | None  # None: cannot be evaluated

MAX_VALUES: Final = 200  # that one path may lead to; evaluating a filter costs at most that times its conditions

_MISSING: Final = object()
_UNREADABLE: Final = object()  # also for a number whose exponent is beyond all bounds
_TYPES: Final[Mapping[type, str]] = {
    bool: "boolean",
    int: "number",
    Decimal: "number",
    str: "string",
    datetime: "moment",
    type(None): "null",
}
_ORDERED: Final = ("number", "string", "moment")
_ORDERS: Final[Mapping[Operator, Callable[[Any, Any], bool]]] = {
    Operator.GT: operator.gt,
    Operator.GTE: operator.ge,
    Operator.LT: operator.lt,
    Operator.LTE: operator.le,
}


class Facts:
    """What filters look at in one event. Its data is read when the first of them asks for it, and then once."""

    __slots__ = ("_data", "_fields")

    def __init__(self, tenant: str, content: Content) -> None:
        self._fields: dict[str, Scalar] = {
            "type": content.type,
            "source": content.source,
            "id": content.external_id,
            "time": content.time,
            "tenant": tenant,
        }
        if content.subject is not None:
            self._fields["subject"] = content.subject
        self._data: object = content.data

    def at(self, path: Sequence[str]) -> Sequence[object] | None:
        """The values that a path leads to, `_MISSING` among them; None for too many, or data that cannot be read."""
        if path[0] != "data":
            return (self._fields.get(path[0], _MISSING),)
        if isinstance(self._data, bytes):
            self._data = _read(self._data)
        return None if self._data is _UNREADABLE else _follow(self._data, path[1:])


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one condition of a filter."""

    where: str
    holds: Truth


class Filter:
    """A compiled filter; without a node, one that nobody can read and that matches nothing."""

    __slots__ = ("_holds", "_node")

    def __init__(self, node: Node | None) -> None:
        self._node = node
        self._holds = _never if node is None else _compiled(node)

    def matches(self, facts: Facts) -> bool:
        """Whether the event is one that it asks for. Never raises."""
        return _told(self._holds, facts) is True

    def explain(self, facts: Facts) -> list[Told]:
        """Each of its conditions by itself, in order."""
        return [Told(one.where, _told(_condition(one), facts)) for one in _conditions(self._node)]


def _never(_: Facts) -> Truth:
    return None


def _told(holds: Callable[[Facts], Truth], facts: Facts) -> Truth:
    try:
        return holds(facts)
    except Exception:  # noqa: BLE001 - one event that nobody foresaw must not stop the admission of all others
        return None


def _conditions(node: Node | None) -> Iterable[Condition]:
    match node:
        case None:
            return
        case Condition():
            yield node
        case Not(part):
            yield from _conditions(part)
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from _conditions(part)
        case _:
            assert_never(node)


def _compiled(node: Node) -> Callable[[Facts], Truth]:
    match node:
        case Condition():
            return _condition(node)
        case Not(part):
            inner = _compiled(part)
            return lambda facts: _not(inner(facts))
        case AllOf(parts):
            every = [_compiled(part) for part in parts]
            return lambda facts: _not(_any(_not(holds(facts)) for holds in every))
        case AnyOf(parts):
            some = [_compiled(part) for part in parts]
            return lambda facts: _any(holds(facts) for holds in some)
        case _:
            assert_never(node)


def _condition(condition: Condition) -> Callable[[Facts], Truth]:
    path, operand = condition.path, condition.operand
    match condition.operator:
        case Operator.EXISTS:
            return lambda facts: _exists(facts.at(path), wanted=operand is True)
        case Operator.NEQ | Operator.NIN:
            test = _test(Operator.EQ if condition.operator is Operator.NEQ else Operator.IN, operand)
            return lambda facts: _not(_of_any(facts.at(path), test))
        case _:
            test = _test(condition.operator, operand)
            return lambda facts: _of_any(facts.at(path), test)


def _test(name: Operator, operand: Any) -> Callable[[object], Truth]:
    """What is asked of each value."""
    match name:
        case Operator.EQ:
            return _in((operand,))
        case Operator.IN:
            return _in(operand)
        case Operator.STARTS_WITH:
            return lambda value: value.startswith(operand) if isinstance(value, str) else None
        case Operator.ENDS_WITH:
            return lambda value: value.endswith(operand) if isinstance(value, str) else None
        case _:
            return _in_order(_ORDERS[name], operand)


def _in_order(compare: Callable[[Any, Any], bool], operand: object) -> Callable[[object], Truth]:
    kind = _TYPES[type(operand)]
    if kind not in _ORDERED:
        return lambda _: None
    return lambda value: compare(value, operand) if _TYPES.get(type(value)) == kind else None


def _in(members: Sequence[Scalar]) -> Callable[[object], Truth]:
    by_type: dict[str, set[Scalar]] = {}
    for member in members:
        by_type.setdefault(_TYPES[type(member)], set()).add(member)
    with_null = "null" in by_type
    only_null = len(by_type) == 1 and with_null

    def test(value: object) -> Truth:
        if value is None:
            return with_null
        if value is _MISSING or value is _UNREADABLE:
            return None
        alike = by_type.get(_TYPES.get(type(value), "none of ours"))
        if alike is not None:
            return value in alike
        return False if only_null else None

    return test


def _of_any(values: Sequence[object] | None, test: Callable[[object], Truth]) -> Truth:
    """Whether it is true of one of the values, a list's elements in its place."""
    if values is None:
        return None
    flat: list[object] = []
    for value in values:
        if isinstance(value, list):
            flat += value[: MAX_VALUES + 1]
        else:
            flat.append(value)
        if len(flat) > MAX_VALUES:
            return None
    return _any(map(test, flat))


def _exists(values: Sequence[object] | None, *, wanted: bool) -> Truth:
    return None if values is None else any(value is not _MISSING for value in values) is wanted


def _any(truths: Iterable[Truth]) -> Truth:
    unknown = False
    for truth in truths:
        if truth:
            return True
        unknown = unknown or truth is None
    return None if unknown else False


def _not(truth: Truth) -> Truth:
    return None if truth is None else not truth


def _follow(data: object, names: Sequence[str]) -> Sequence[object] | None:
    values = [data]
    for name in names:
        reached: list[object] = []
        for value in values:
            if isinstance(value, list) and not _is_place(name):
                reached += [_step(element, name) for element in value[: MAX_VALUES + 1]]
            else:
                reached.append(_step(value, name))
            if len(reached) > MAX_VALUES:
                return None
        values = reached
    return values


def _step(value: object, name: str) -> object:
    if isinstance(value, dict):
        return value.get(name, _MISSING)
    if isinstance(value, list) and _is_place(name):
        place = int(name)
        return value[place] if place < len(value) else _MISSING
    return _MISSING


def _is_place(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _number(digits: str) -> object:
    try:
        return Decimal(digits)
    except InvalidOperation:
        return _UNREADABLE


_decoder = msgspec.json.Decoder(float_hook=_number)


def _read(data: bytes) -> object:
    try:
        return _decoder.decode(data)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it cannot be evaluated
        return _UNREADABLE
