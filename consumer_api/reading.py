"""Reading requests: bodies within their bounds, JSON, query strings, ids in paths."""

import asyncio
from typing import Final, TypeVar
from uuid import UUID

import orjson
from aiohttp import web
from pydantic import BaseModel

from consumer_api.caller import forbidden
from consumer_api.context import CALLER
from consumer_api.errors import ApiError, ErrorCode, Fault
from schemas.errors import InvalidInput, Problem
from schemas.ids import parse_id
from schemas.inputs import read_input
from schemas.raw_json import json_fault

Model = TypeVar("Model", bound=BaseModel)

BODY_TIMEOUT_S: Final = 30
MAX_DEPTH: Final = 64  # of what is read into a model; the data of events has a bound of its own


async def read_body(request: web.Request) -> bytes:
    """The body, within the application's size limit and a time limit, or one that drips would hold its handler."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        message = f"the body did not arrive within {BODY_TIMEOUT_S} s"
        raise ApiError(Fault(408, ErrorCode.REQUEST_TIMEOUT, message)) from None
    except web.RequestPayloadError as error:
        raise ApiError(Fault(400, ErrorCode.INVALID_REQUEST, "the body cannot be read")) from error


async def read_json(request: web.Request, model: type[Model], *, optional: bool = False) -> Model:
    """The body as a model, of the caller's tenant; with `optional`, no body is an empty object."""
    body = await read_body(request)
    return read_input(model, of_tenant(request, model, {} if optional and not body else parse_json(body)))


async def read_raw_json(request: web.Request, *, max_depth: int) -> bytes:
    """The body as it came, which is JSON and nested no deeper than that."""
    body = await read_body(request)
    if fault := json_fault(body, max_depth=max_depth):
        raise _not_json(f"the body {fault}")
    return body


def parse_json(body: bytes) -> object:
    """The JSON in a body. Raises 400 for what is none, or nested deeper than any body has to be."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("depth limit"):  # its own, which is far beyond ours
            raise _not_json(f"the body must be JSON that is nested at most {MAX_DEPTH} deep") from None
        # Its position, not its text: the text may hold a secret.
        where = f"line {error.lineno} column {error.colno}"
        raise _not_json(f"the body is not JSON: {error.msg} at {where}") from None
    if fault := json_fault(body, max_depth=MAX_DEPTH):
        raise _not_json(f"the body {fault}")
    return value


def read_query(request: web.Request, model: type[Model]) -> Model:
    """The query string as a model, of the caller's tenant.

    A field that is a tuple takes several values, repeated or joined by commas.
    """
    values: dict[str, object] = {}
    problems = []
    for name in dict.fromkeys(request.query):
        given = request.query.getall(name)
        if _takes_many(model, name):
            values[name] = tuple(part for value in given for part in value.split(","))
        elif len(given) == 1:
            values[name] = given[0]
        else:
            problems.append(Problem(name, "must be given once"))
    if problems:
        raise InvalidInput(problems)
    return read_input(model, of_tenant(request, model, values))


def of_tenant(request: web.Request, model: type[BaseModel], values: object) -> object:
    """`values` for a model, with the caller's tenant as its `tenant` where it has one and the caller is of a tenant.

    Raises 403 for another's.
    """
    if "tenant" not in model.model_fields or not isinstance(values, dict):
        return values
    tenant = tenant_for(request, values.get("tenant"))
    return values if tenant is None else values | {"tenant": tenant}


def tenant_for(request: web.Request, given: object) -> object:
    """The tenant that the caller asks something of: what is given, or its own. Raises 403 for another's."""
    own = request[CALLER].tenant
    if own is None:
        return given
    if given is not None and given != own:
        raise forbidden(f"tenant: the key is of the tenant {own!r}, and may name no other")
    return own


def path_id(request: web.Request, prefix: str, field: str) -> UUID:
    """The id in the path. Raises InvalidInput that names `field` for one of another kind."""
    return parse_id(prefix, request.match_info[field], field=field)


def _takes_many(model: type[BaseModel], name: str) -> bool:
    known = model.model_fields.get(name)
    return known is not None and isinstance(known.default, tuple)


def _not_json(message: str) -> ApiError:
    return ApiError(Fault(400, ErrorCode.INVALID_JSON, message))
