"""What a caller sends in, checked by pydantic: the base of such models, and its errors as our own.

Part of the server only: the base install has no pydantic.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from schemas.errors import InvalidInput, Problem

Model = TypeVar("Model", bound=BaseModel)


class Input(BaseModel):
    """A model of input: frozen, unknown fields refused, and no value in any error text."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Tags:
    """The names of a union's members, as pydantic puts them into the path of an error. They are no field's name."""

    LIST = "<list policy>"
    EXPONENTIAL = "<exponential policy>"
    STANDARD = "<standard signature>"
    HMAC = "<hmac signature>"
    BASIC = "<basic auth>"
    BEARER = "<bearer auth>"
    API_KEY = "<api_key auth>"
    OAUTH2 = "<oauth2 auth>"
    ALL = frozenset({LIST, EXPONENTIAL, STANDARD, HMAC, BASIC, BEARER, API_KEY, OAUTH2})


def read_input(model: type[Model], data: object) -> Model:
    """`data`, parsed JSON, as a `model`. Raises InvalidInput that names every field at fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # No cause: pydantic keeps the rejected values in it, and they may be secrets.
        raise invalid_input(error, model=model) from None


def invalid_input(error: ValidationError, *, model: type[BaseModel] | None = None) -> InvalidInput:
    """Pydantic's error as ours: a dotted path for each field, what would be right, and never the value that was given.

    With `model`, an unknown field is answered with the known ones.
    """
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return InvalidInput([Problem(_path(fault), _message(fault, model)) for fault in faults if not _echo(fault, faults)])


def rule(message: str | None) -> None:
    """Raise what pydantic reports as the field's fault; do nothing for None."""
    if message is not None:
        raise PydanticCustomError("rule", message)


def _echo(fault: ErrorDetails, faults: Sequence[ErrorDetails]) -> bool:
    """Whether a list is called too short only because pydantic dropped the members that are at fault themselves."""
    loc = fault["loc"]
    return fault["type"] == "too_short" and any(
        other["loc"][: len(loc)] == loc and len(other["loc"]) > len(loc) for other in faults
    )


def _path(fault: ErrorDetails) -> str:
    return ".".join(str(part) for part in fault["loc"] if part not in Tags.ALL) or "body"


def _message(fault: ErrorDetails, model: type[BaseModel] | None) -> str:
    match fault["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return f"is not a known field{_known_fields(fault, model)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be an object"
        case "tuple_type" | "list_type":
            return "must be a list"
        case _:
            message = re.sub(r"^(Input|Value|Tuple|List|Dictionary|String) should ", "must ", fault["msg"])
            return re.sub(r" after validation, not \d+$", "", message)


def _known_fields(fault: ErrorDetails, model: type[BaseModel] | None) -> str:
    # Only of the outermost object: the path of a deeper one does not tell its model.
    if model is None or len(fault["loc"]) != 1:
        return ""
    fields: dict[str, Any] = dict(model.model_fields)
    return f"; known are {', '.join(field.alias or name for name, field in fields.items())}"
