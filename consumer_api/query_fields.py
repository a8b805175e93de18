"""Fields of what callers send, which several queries and commands have."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final, NoReturn
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from consumer_api.cursors import decode_cursor
from consumer_api.views import id_schema
from infra.store.history import TimeRange
from schemas.errors import InvalidInput
from schemas.fields import (
    ID_SCHEMA,
    SOURCE_SCHEMA,
    TENANT_SCHEMA,
    TYPE_SCHEMA,
    id_fault,
    source_fault,
    tenant_fault,
    type_fault,
)
from schemas.ids import DELIVERY, EVENT, REPLAY, SECRET, SUBSCRIPTION, parse_id
from schemas.inputs import Input, rule

_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)  # RFC 3339


def _refuse(message: str) -> NoReturn:
    raise PydanticCustomError("rule", "{message}", {"message": message})


def _moment(value: object) -> datetime:
    """A moment as RFC 3339 writes it, and no other form: pydantic would also take numbers."""
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        try:
            moment = datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        else:
            if moment.year >= 1970:
                return moment
    _refuse("must be a time such as 2026-01-31T12:00:00Z (a + in a query string is written %2B)")


def id_of(prefix: str) -> BeforeValidator:
    """A public id of one kind, read as its key."""

    def read(value: object) -> UUID:
        try:
            return parse_id(prefix, value if isinstance(value, str) else "")
        except InvalidInput as error:
            _refuse(error.problems[0].message)

    return BeforeValidator(read)


def _cursor(value: object) -> UUID:
    try:
        return decode_cursor(value if isinstance(value, str) else "")
    except InvalidInput as error:
        _refuse(error.problems[0].message)


def within_rule(fault: Callable[[str], str | None]) -> AfterValidator:
    """Text that keeps one of the rules of `schemas.fields`."""

    def check(text: str) -> str:
        rule(fault(text))
        return text

    return AfterValidator(check)


Moment = Annotated[datetime, BeforeValidator(_moment)]
SubscriptionKey = Annotated[UUID, id_of(SUBSCRIPTION), WithJsonSchema(id_schema(SUBSCRIPTION))]
EventKey = Annotated[UUID, id_of(EVENT), WithJsonSchema(id_schema(EVENT))]
SecretKey = Annotated[UUID, id_of(SECRET), WithJsonSchema(id_schema(SECRET))]
DeliveryKey = Annotated[UUID, id_of(DELIVERY), WithJsonSchema(id_schema(DELIVERY))]
Tenant = Annotated[str, within_rule(tenant_fault), Field(json_schema_extra=TENANT_SCHEMA)]
EventType = Annotated[str, within_rule(type_fault), Field(json_schema_extra=TYPE_SCHEMA)]
Source = Annotated[str, within_rule(source_fault), Field(json_schema_extra=SOURCE_SCHEMA)]
ExternalId = Annotated[str, within_rule(id_fault), Field(json_schema_extra=ID_SCHEMA)]
ReplayKey = Annotated[UUID, id_of(REPLAY), WithJsonSchema(id_schema(REPLAY))]
Cursor = Annotated[UUID, BeforeValidator(_cursor), WithJsonSchema({"type": "string"})]


class Created(Input):
    """A range of time: from `created_after`, inclusive, to `created_before`, exclusive."""

    created_after: Moment | None = None
    created_before: Moment | None = None

    def created(self) -> TimeRange:
        return TimeRange(self.created_after, self.created_before)
