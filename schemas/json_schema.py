"""Which JSON Schemas an event type may have: what of draft 2020-12 is taken, and how much a check may cost.

A check cannot be interrupted, and holds its whole process (jsonschema-rs keeps the interpreter's lock), so its cost is
bounded before it begins: `Weight` says how many steps of about 30 ns a value, an object and a byte of data may take.
A schema that refers to itself has no such bound: one of two lines took 85 s for data 18 deep (measured).

- `$ref` is `#` and a JSON pointer, within the schema. Nothing is fetched from elsewhere, so that a check depends on
  nothing but the catalogue; and nothing refers to itself.
- Regular expressions are those of Rust's `regex`, which takes linear time: no look-ahead, no backreference. They
  have no flag x.
- `format` and the `content…` keywords are notes, as the draft has it, and are not checked. `pattern` is.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeGuard

from schemas.errors import InvalidInput

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_SCHEMA_BYTES: Final = 32_768
MAX_SCHEMA_DEPTH: Final = 32
MAX_STEPS_OF_A_VALUE: Final = 2000
MAX_PATTERNS: Final = 32
MAX_PATTERN_CHARS: Final = 256
MAX_REPEATED: Final = 128  # of a regular expression, with its counted repetitions written out
MAX_STEPS: Final = 2_000_000  # of one check, about 30 ns each: 62 ms for the worst of what was measured

_SINGLE: Final = (
    *("additionalProperties", "propertyNames", "items", "contains", "not", "if", "then", "else"),
    *("unevaluatedProperties", "unevaluatedItems", "contentSchema"),
)
_LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS: Final = ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")
_ONE_OF_THEM: Final = ("properties", "prefixItems")  # is what a value meets: it has one name, or one place
_ELSEWHERE: Final = ("$defs", "definitions")  # are weighed where they are referred to
_FAR: Final = ("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary")
# In steps; another keyword is one. Each was measured over 50,000 values.
_STEPS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("$defs", "definitions", "title", "description", "examples", "default", "$comment"), 0),
    **dict.fromkeys(("const", "uniqueItems", "anyOf", "oneOf", "unevaluatedItems", "unevaluatedProperties"), 5),
    **dict.fromkeys(("pattern", "patternProperties"), 5),
    "multipleOf": 60,
}
_STEPS_OF_A_MULTIPLE: Final = 90  # of a number of many digits, besides
_STEPS_OF_A_FINE_MULTIPLE: Final = 1200  # below this:
_FINE: Final = 1e-9
_STEPS_OF_A_NUMBER: Final = 30
# Digits that no machine's integer holds, and how many times longer such a number takes. Also what looks so in a text.
_LONG: Final = re.compile(rb"[0-9]{19,}")
_LONGER: Final = 100
# What takes `multipleOf` so much longer as well: decimals that are long, and powers of ten.
_ROUGH: Final = re.compile(rb"[0-9]{14,18}+\.[0-9]|[0-9][eE][+-]?[0-9]{2,}[\s,\]}]")
# Integers of which `uniqueItems` puts many in one bucket, as one float stands for them, and compares each with each
# there; and those beyond 64 bits, which are all in one, and take longer.
_NEAR: Final = re.compile(rb"[0-9]{17,}")
_STEPS_OF_A_NEAR_PAIR: Final = 2
_STEPS_OF_A_NEAR_ONE: Final = 1000  # at most: a bucket has its bounds
_BEYOND: Final = re.compile(rb"[0-9]{20,}|9[2-9][0-9]{17}")
_STEPS_OF_A_PAIR_BEYOND: Final = 20
_BYTES_A_STEP: Final = 20  # copied into an error
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_REPETITION: Final = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_VERBOSE: Final = re.compile(r"\(\?[A-Za-z-]*x")  # spaces and comments may stand before a count
_CLASS: Final = re.compile(r"\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]")


class Weight(NamedTuple):
    """Steps that a check takes at most: for each value of the data, for each object, and patterns for each byte.

    The others are how many of the keywords that take longer for some data a value may meet: `uniqueItems`,
    `multipleOf`, and `anyOf` and `oneOf`. And `expressions` is how many regular expressions the schema has.
    """

    of_value: int = 0
    of_object: int = 0
    patterns: int = 0
    unique: int = 0
    multiples: int = 0
    alternatives: int = 0
    expressions: int = 0

    def steps(self, data: bytes) -> int:
        """Of checking this JSON, at most."""
        long = len(_LONG.findall(data))
        rough = len(_ROUGH.findall(data)) if self.multiples else 0
        values = _values(data)
        steps = self.of_value * (values + _LONGER * (long + rough)) + self.multiples * _STEPS_OF_A_MULTIPLE * values
        steps += self.of_object * data.count(b"{") + self.patterns * len(data) // 4
        if self.unique:
            near, beyond = len(_NEAR.findall(data)), len(_BEYOND.findall(data))
            of_near = near * min(_STEPS_OF_A_NEAR_PAIR * near, _STEPS_OF_A_NEAR_ONE)
            steps += self.unique * (of_near + _STEPS_OF_A_PAIR_BEYOND * beyond * beyond)
        return steps

    def steps_to_tell(self, data: bytes) -> int:
        """Of saying where this JSON breaks it, at most, once that is known.

        What breaks an `anyOf` comes with an error, and a copy of what it is about, for each rule in it that is broken.
        """
        if not self.alternatives:
            return 0
        return (self.of_value + self.of_object) * (5 * _values(data) + len(data) // _BYTES_A_STEP)

    def plus(self, other: "Weight") -> "Weight":
        return Weight(*(one + two for one, two in zip(self, other, strict=True)))


def weigh(schema: object) -> Weight:
    """What a schema's checks cost. Raises InvalidInput that names what in it is not taken."""
    if not isinstance(schema, dict | bool):
        raise InvalidInput.of("schema", "must be a JSON Schema: an object, or true or false")
    if isinstance(schema, dict) and schema.get("$schema", DIALECT) not in (DIALECT, f"{DIALECT}#"):
        raise InvalidInput.of("schema.$schema", f"must be {DIALECT}, the one draft that is taken, or left out")
    scales = _Scales(schema)
    weight = scales.of(schema, "", ())
    if scales.patterns > MAX_PATTERNS:
        raise InvalidInput.of("schema", f"must have at most {MAX_PATTERNS} patterns")
    return weight._replace(expressions=scales.patterns)


class _Scales:
    """Weighs the parts of one schema, each once."""

    def __init__(self, root: object) -> None:
        self.patterns = 0
        self._root = root
        self._known: dict[str, tuple[Weight, int]] = {}  # and how deep it is
        self._deepest = [0]  # of the parts so far, of each that is being weighed

    def of(self, schema: object, pointer: str, within: tuple[str, ...]) -> Weight:
        """The weight of the part at `pointer`; `within` are the pointers of those that it is part of."""
        if pointer in within:
            raise InvalidInput.of(_named(pointer), "must not refer to itself: a check of it could take for ever")
        weight, depth = self._known.get(pointer) or self._weighed(schema, pointer, within)
        if len(within) + depth > MAX_SCHEMA_DEPTH:
            raise InvalidInput.of(_named(pointer), f"must be nested at most {MAX_SCHEMA_DEPTH} deep, $ref included")
        self._deepest[-1] = max(self._deepest[-1], depth)
        return weight

    def _weighed(self, schema: object, pointer: str, within: tuple[str, ...]) -> tuple[Weight, int]:
        self._deepest.append(0)
        weight = Weight(1) if not isinstance(schema, dict) else self._of_object(schema, pointer, (*within, pointer))
        if max(weight.of_value, weight.of_object) > MAX_STEPS_OF_A_VALUE:
            raise InvalidInput.of(
                _named(pointer), f"must not be so large: a value could meet more than {MAX_STEPS_OF_A_VALUE} rules"
            )
        self._known[pointer] = weighed = weight, self._deepest.pop() + 1
        return weighed

    def _of_object(self, schema: Mapping[str, Any], pointer: str, within: tuple[str, ...]) -> Weight:
        for name in (*_FAR, "$schema"):
            if name in schema and (pointer or name not in {"$id", "$schema"}):
                raise InvalidInput.of(
                    _named(f"{pointer}/{name}"),
                    "is not taken here: refer by $ref, # and a JSON pointer into the schema",
                )
        for name, pattern in _patterns(schema):
            self.patterns += 1
            _check_pattern(pattern, f"{pointer}/{name}")
        weight = _own(schema)
        if "$ref" in schema:
            weight = weight.plus(self._referred(schema["$ref"], pointer, within))
        for name, parts in _parts(schema):
            found = [self.of(part, f"{pointer}/{name}{place}", within) for place, part in parts]
            if name in _ONE_OF_THEM:
                weight = weight.plus(_most(found))
            elif name not in _ELSEWHERE:
                weight = weight.plus(_sum(found))
        if "unevaluatedProperties" in schema or "unevaluatedItems" in schema:
            weight = weight.plus(weight)  # what stands beside it is evaluated once more
        return weight

    def _referred(self, reference: object, pointer: str, within: tuple[str, ...]) -> Weight:
        where = _named(f"{pointer}/$ref")
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise InvalidInput.of(
                where, "must be # and a JSON pointer into this schema: nothing is fetched from elsewhere"
            )
        target = self._root
        for part in reference[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and name in target:
                target = target[name]
            elif isinstance(target, list) and _INDEX.fullmatch(name) and int(name) < len(target):
                target = target[int(name)]
            else:
                raise InvalidInput.of(where, "must lead to a place in this schema")
        return self.of(target, reference[1:], within)


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, object]]]]:
    """The schemas in a schema, by the keyword that they stand in, each with its place there."""
    for name, given in schema.items():
        if name in _SINGLE:
            yield name, [("", given)]
        elif name in _LISTS and isinstance(given, list):
            yield name, [(f"/{number}", part) for number, part in enumerate(given)]
        elif name in _MAPS and isinstance(given, dict):
            yield name, [(f"/{_escaped(key)}", part) for key, part in given.items()]


def _own(schema: Mapping[str, Any]) -> Weight:
    """The weight of a schema's own keywords, without what stands in them."""
    of_value = sum(_STEPS.get(name, 1) for name in schema)
    of_value += sum(_size(member) for name in ("enum", "const") for member in _members(schema.get(name)))
    if _is_number(multiple := schema.get("multipleOf")) and multiple < _FINE:
        of_value += _STEPS_OF_A_FINE_MULTIPLE
    of_object = sum(len(schema[name]) for name in ("properties", "required") if _sized(schema.get(name)))
    for name in ("dependentRequired", "dependencies", "dependentSchemas"):
        if isinstance(wanted := schema.get(name), dict):
            of_object += sum(1 + (len(one) if isinstance(one, list) else 0) for one in wanted.values())
    return Weight(
        of_value,
        of_object,
        patterns=sum(_quarters_of_a_byte(pattern) for _, pattern in _patterns(schema)),
        unique=int("uniqueItems" in schema),
        multiples=int("multipleOf" in schema),
        alternatives=sum(name in schema for name in ("anyOf", "oneOf")),
    )


def _patterns(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(pattern := schema.get("pattern"), str):
        yield "pattern", pattern
    if isinstance(patterns := schema.get("patternProperties"), dict):
        for pattern in patterns:
            yield "patternProperties", pattern


def _check_pattern(pattern: str, pointer: str) -> None:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise InvalidInput.of(_named(pointer), f"must be at most {MAX_PATTERN_CHARS} characters long")
    if _VERBOSE.search(re.sub(r"\\.", "", pattern)):
        raise InvalidInput.of(_named(pointer), "must not have the flag x: what it counts could not be told")
    if repeated(pattern) > MAX_REPEATED:
        raise InvalidInput.of(
            _named(pointer),
            f"must not count so far: written out, it has more than {MAX_REPEATED} parts (maxLength counts characters)",
        )


def _quarters_of_a_byte(pattern: str) -> int:
    """Quarters of a step that a byte of text takes: if it may go on anywhere, it may have to follow all its parts.

    Few do, as the engine remembers where it stands. But `(.{0,60}a){2}z` took 4 µs a byte, and most take 5 ns.
    """
    is_anchored = pattern.startswith("^") and pattern[1:2] not in ("?", "{")  # of which none may be there
    ends_soon = is_anchored and not any(sign in pattern for sign in ("*", "+", "|", ",}"))
    return 1 if ends_soon else 1 + 4 * repeated(pattern)


def repeated(pattern: str) -> int:
    """How many parts a regular expression has once its counted repetitions are written out. About; never raises."""
    groups, last, place = [0], 0, 0
    while place < len(pattern):
        one = pattern[place]
        if found := _REPETITION.match(pattern, place):
            times = max(int(found[1][:6]), int((found[2] or "0")[:6]), 1)
            groups[-1] += last * (times - 1)
            last *= times
        elif one == "(":
            groups.append(0)
        elif one == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif one not in "*+?|^$":
            last = 1
            groups[-1] += 1
        if found or (one == "[" and (found := _CLASS.match(pattern, place))):
            place = found.end()
        else:
            place += 2 if one == "\\" else 1
    return sum(groups)


def _members(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _size(value: object) -> int:
    """Steps to compare with a value: a text is found by its hash, and numbers are compared exactly."""
    if isinstance(value, list):
        return 5 + sum(map(_size, value))
    if isinstance(value, dict):
        return 5 + sum(map(_size, value.values()))
    return _STEPS_OF_A_NUMBER if _is_number(value) else 1


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _values(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{") + 1


def _sized(value: object) -> bool:
    return isinstance(value, list | dict)


def _sum(weights: list[Weight]) -> Weight:
    return Weight(*map(sum, zip(*weights, strict=True))) if weights else Weight()


def _most(weights: list[Weight]) -> Weight:
    return Weight(*map(max, zip(*weights, strict=True))) if weights else Weight()


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _named(pointer: str) -> str:
    """A place in a schema, as errors name it; short, whatever its names are."""
    return f"schema{pointer}".replace("/", ".")[:200]
