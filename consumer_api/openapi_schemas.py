"""JSON Schemas of models and TypedDicts under stable names, and examples made from them. Pure.

A type's name in the document is its class's; a page of views is `PageOf…`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

Schema = dict[str, Any]
Mode = Literal["validation", "serialization"]

REF: Final = "#/components/schemas/"
_GENERIC: Final = re.compile(r"([A-Za-z0-9]+)_([A-Za-z0-9]+)_")
_SOME_TIME: Final = "2026-01-31T12:00:00Z"


class _Untitled(GenerateJsonSchema):
    """Without a title for each field that says its name again."""

    def field_title_should_be_set(self, schema: core_schema.CoreSchema | Any) -> bool:
        return False


class Schemas:
    """The schemas of all types of the document. A type is asked for by itself and by whether it is read or written."""

    def __init__(self, read: Iterable[Any], written: Iterable[Any]) -> None:
        given = [(kind, mode) for mode, kinds in _by_mode(read, written) for kind in dict.fromkeys(kinds)]
        inputs = [(_key(kind), mode, TypeAdapter(kind)) for kind, mode in given]
        tops, defs = TypeAdapter.json_schemas(inputs, ref_template=f"{REF}{{model}}", schema_generator=_Untitled)
        self.components: dict[str, Schema] = {
            _name(name): _renamed(schema) for name, schema in defs.get("$defs", {}).items()
        }
        self._tops: dict[tuple[str, Mode], Schema] = {}
        for kind, mode in given:
            top: Schema = _renamed(tops[_key(kind), mode])
            if "title" in top:  # a class that is used once: pydantic gives it no name
                name = _name(top["title"])
                self.components[name] = top
                top = {"$ref": f"{REF}{name}"}
            self._tops[_key(kind), mode] = top

    def of(self, kind: Any, mode: Mode) -> Schema:
        """The schema of a type: a reference where it has a name."""
        return self._tops[_key(kind), mode]

    def resolved(self, schema: Schema) -> Schema:
        """What a reference stands for."""
        return self.components[schema["$ref"].removeprefix(REF)] if "$ref" in schema else schema

    def example(self, schema: Schema, within: tuple[str, ...] = ()) -> Any:
        """A value that fits: what the schema has as its first example, or something plain.

        An object has what it must have, and of the rest what has an example; or its first field, where that is nothing.
        """
        if "examples" in schema:
            return schema["examples"][0]
        if "$ref" in schema:
            name = schema["$ref"]
            return {} if name in within else self.example(self.resolved(schema), (*within, name))
        for choice in ("anyOf", "oneOf"):
            if choice in schema:
                return self.example(schema[choice][0], within)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][0]
        match schema.get("type"):
            case "object":
                fields = schema.get("properties", {})
                shown = {
                    name: one for name, one in fields.items() if name in schema.get("required", ()) or "examples" in one
                } or dict(list(fields.items())[:1])
                return {name: self.example(one, within) for name, one in shown.items()}
            case "array":
                return [self.example(schema["items"], within)]
            case kind:
                return _plain(kind, schema)

    def used_by(self, document: Any) -> dict[str, Schema]:
        """The components that a document refers to, and those that these refer to, by name."""
        found: set[str] = set()
        waiting = list(_references(document))
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += _references(self.components[name])
        return {name: self.components[name] for name in sorted(found)}


def without_null(schema: Schema) -> Schema:
    """The schema of what is there: without null among the choices, and without a default of null."""
    rest = {name: value for name, value in schema.items() if name != "anyOf" and (name, value) != ("default", None)}
    choices = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(choices) == 1:
        return {**choices[0], **rest}
    return rest | ({"anyOf": choices} if choices else {})


def _plain(kind: str | None, schema: Schema) -> Any:
    if kind == "string":
        return _SOME_TIME if schema.get("format") == "date-time" else "text"
    return {"integer": schema.get("minimum", 1), "number": schema.get("minimum", 1.5), "boolean": False}.get(kind or "")


def _by_mode(read: Iterable[Any], written: Iterable[Any]) -> Sequence[tuple[Mode, Iterable[Any]]]:
    return (("validation", read), ("serialization", written))


def _key(kind: Any) -> str:
    return str(kind) if not isinstance(kind, type) else f"{kind.__module__}.{kind.__qualname__}"


def _name(name: str) -> str:
    """As of `Page[X]`, which pydantic writes as it is in a title and `Page_X_` in a reference."""
    plain = re.sub(r"[\[\]]", "_", name)
    match = _GENERIC.fullmatch(plain)
    return f"{match[1]}Of{match[2]}" if match else plain


def _renamed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_renamed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: f"{REF}{_name(value.removeprefix(REF))}" if name == "$ref" and isinstance(value, str) else _renamed(value)
        for name, value in schema.items()
    }


def _references(document: Any) -> Iterable[str]:
    if isinstance(document, Mapping):
        for name, value in document.items():
            if name == "$ref" and isinstance(value, str) and value.startswith(REF):
                yield value.removeprefix(REF)
            else:
                yield from _references(value)
    elif isinstance(document, list):
        for one in document:
            yield from _references(one)
