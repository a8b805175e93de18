"""How event types look from outside."""

from datetime import datetime
from typing import Annotated, Any

import orjson
from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from consumer_api.views import EventType, JsonData
from infra.store.event_types import EventTypeRow, VersionRow
from schemas.dataschema import dataschema_of


class EventTypeView(TypedDict):
    """A type of events. Its schemas are its versions."""

    name: EventType
    description: str
    schema_version: Annotated[int | None, Field(description="the newest version of its schema; null: it has none")]
    example: Annotated[JsonData, Field(description="of an event's data; null for none")]
    deprecated: bool
    deprecated_at: datetime | None
    deprecation: Annotated[str | None, Field(description="what takes its place")]
    created_at: datetime
    updated_at: datetime


class EventTypeVersionView(TypedDict):
    """A version of a type's schema, which stays as it is."""

    event_type: EventType
    version: int
    dataschema: Annotated[str, Field(description="what an event names it by")]
    schema: Annotated[JsonData, Field(description="a JSON Schema, byte for byte as it came")]
    created_at: datetime


def event_type_view(row: EventTypeRow) -> EventTypeView:
    return {
        "name": row.name,
        "description": row.description,
        "schema_version": row.newest,
        "example": None if row.example is None else orjson.Fragment(row.example),
        "deprecated": row.deprecated_at is not None,
        "deprecated_at": row.deprecated_at,
        "deprecation": row.deprecation,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def version_view(name: str, row: VersionRow) -> EventTypeVersionView:
    return {
        "event_type": name,
        "version": row.number,
        "dataschema": dataschema_of(name, row.number),
        "schema": orjson.Fragment(row.schema),
        "created_at": row.created_at,
    }


def recorded_type(row: EventTypeRow) -> dict[str, Any]:
    """For the audit log, which holds no bytes as they came: JSON is text there."""
    example = None if row.example is None else row.example.decode()
    return {**event_type_view(row), "example": example}


def recorded_version(name: str, row: VersionRow) -> dict[str, Any]:
    return {**version_view(name, row), "schema": row.schema.decode()}
