"""What callers send about event types. What is JSON of theirs is kept as the bytes that came."""

from typing import Annotated, Any, Final, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, Strict, WithJsonSchema

from consumer_api.queries import ListQuery
from consumer_api.query_fields import EventType, within_rule
from consumer_api.reading import parse_json, read_body
from schemas.errors import InvalidInput
from schemas.fields import OPERATIONAL_WORD, description_fault, is_operational
from schemas.inputs import Input, read_input, rule
from schemas.raw_json import members

MAX_EXAMPLE_BYTES: Final = 32_768

Model = TypeVar("Model", bound=BaseModel)


def _of_producers(name: str) -> str:
    rule(f"must not begin with the word {OPERATIONAL_WORD}" if is_operational(name) else None)
    return name


Description = Annotated[str, within_rule(description_fault)]
Deprecated = Annotated[bool, Strict()]
_Json = Annotated[Any, WithJsonSchema({"description": "Any JSON; null for none."})]
_Schema = Annotated[
    Any,
    WithJsonSchema(
        {"type": ["object", "boolean"], "description": "A JSON Schema of draft 2020-12 for an event's data."}
    ),
]
_EXAMPLE: Final[dict[str, JsonValue]] = {
    "name": "order.created",
    "description": "An order was placed.",
    "schema": {"type": "object", "properties": {"total": {"type": "string"}}, "required": ["total"]},
    "example": {"total": "1.10"},
}


class EventTypesQuery(ListQuery):
    deprecated: bool | None = None


class EventTypeCreate(Input):
    """A type of events. Its `schema`, if it has one, is its version 1, and its `example` keeps it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: Annotated[EventType, AfterValidator(_of_producers)]
    description: Description = ""
    definition: Annotated[_Schema | None, Field(alias="schema")] = None
    example: _Json = None
    deprecated: Deprecated = False
    deprecation: Description | None = None


class EventTypePatch(Input):
    """What to change of a type."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"deprecated": True, "deprecation": "order.placed takes its place."}]}
    )

    description: Description | None = None
    example: _Json = None
    deprecated: Deprecated | None = None
    deprecation: Description | None = None


class EventTypeVersionCreate(Input):
    """The next version of a type's schema. An `example` takes the place of the type's, which keeps the new schema."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"schema": {"type": "object"}}]})

    definition: Annotated[_Schema, Field(alias="schema")]
    example: _Json = None


async def read_with_json(request: web.Request, model: type[Model]) -> tuple[Model, dict[str, bytes]]:
    """The body as a model, and its members as the bytes that they are; what is null is none."""
    body = await read_body(request)
    wanted = read_input(model, parse_json(body))
    given = {name: raw for name, raw in (members(body) or {}).items() if raw != b"null"}
    if len(given.get("example", b"")) > MAX_EXAMPLE_BYTES:
        raise InvalidInput.of("example", f"must be at most {MAX_EXAMPLE_BYTES} bytes")
    return wanted, given
