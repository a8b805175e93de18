"""The OpenAPI 3.1 document, made of the routes and of the types that they declare. Pure.

A route adds itself: its parameters from its path and its query model, its body and its answers from their types, its
errors from what every route like it may answer and from its own codes, its words from its handler's docstring. HEAD,
which every GET answers too, is left out.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from consumer_api.caller import id_prefix
from consumer_api.errors import MEANINGS, ErrorCode
from consumer_api.openapi_schemas import Schema, Schemas, without_null
from consumer_api.openapi_webhooks import WEBHOOK_TYPES, webhooks
from consumer_api.route import Media, Route
from consumer_api.subscription_views import SubscriptionView
from consumer_api.views import ErrorEnvelope, id_schema

JSON: Final = "application/json"
_UNKEYED: Final = "operations"  # the tag of what is no part of /v1
_EVERY: Final = (ErrorCode.INVALID_REQUEST, ErrorCode.EXPECTATION_FAILED, ErrorCode.INTERNAL)
_KEYED: Final = (ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN, ErrorCode.OVERLOADED, ErrorCode.STORE_UNAVAILABLE)
_BODIED: Final = (
    *(ErrorCode.INVALID_JSON, ErrorCode.VALIDATION_FAILED),
    *(ErrorCode.REQUEST_TIMEOUT, ErrorCode.PAYLOAD_TOO_LARGE),
)
_PARAMETER: Final = re.compile(r"\{(\w+)(?::([^{}]+))?\}")
_VERBS: Final = {"POST": "create", "PATCH": "update", "PUT": "replace", "DELETE": "delete"}
_HEADERS: Final = {
    "X-Request-Id": "The request's id: the caller's own where it is fit for a log, or a new one.",
    "X-RateLimit-Limit": "Requests that the key may make in a minute.",
    "X-RateLimit-Remaining": "How many of them are left.",
    "X-RateLimit-Reset": "Seconds until all of them may be made again.",
    "Retry-After": "Seconds to wait before the next try.",
    "WWW-Authenticate": "How to show a key.",
    "Location": "The path of what was made.",
    "ETag": "The version of what is shown, for If-Match.",
    "Idempotency-Replayed": "true where the answer is that of an earlier request with the Idempotency-Key.",
}
_RATE_HEADERS: Final = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
_WAITS: Final = frozenset({ErrorCode.IDEMPOTENCY_IN_FLIGHT})
_NUMBERS: Final = frozenset({"Retry-After", *_RATE_HEADERS})
_INFO: Final = """Webhooks for domain events: subscriptions, events, deliveries, dead letters, replays.

Ids are prefixed and opaque. Lists are read part by part: `next_cursor` of one answer is the `cursor` of the next
request. Times are of RFC 3339, in UTC. Every error has one shape, and a `code` to branch on. Send `X-Request-Id`, and
the answer, the error and the log have it too. Within `/v1`, fields and codes are added, never renamed: ignore those
that you do not know. Every GET answers HEAD too."""


def make_document(routes: Sequence[Route], *, version: str) -> dict[str, Any]:
    """The document of these routes, as JSON-ready values."""
    written = [kind for route in routes for answer in route.answers.values() for kind in _types(answer).values()]
    read = [model for route in routes for model in (route.query, route.body) if model is not None]
    schemas = Schemas(read, [*written, ErrorEnvelope, *WEBHOOK_TYPES])
    paths: dict[str, dict[str, Any]] = {}
    failures: dict[str, Any] = {}
    for route in routes:
        operation = _operation(route, schemas, failures)
        paths.setdefault(documented_path(route.path), {})[route.method.lower()] = operation
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Hookhare",
            "version": version,
            "description": _INFO,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in _tags(routes)],
        "paths": paths,
        "webhooks": webhooks(schemas),
    }
    components = {
        "schemas": schemas.used_by([document, failures]),
        "responses": dict(sorted(failures.items())),
        "headers": {
            name: {"description": text, "schema": {"type": "integer" if name in _NUMBERS else "string"}}
            for name, text in _HEADERS.items()
        },
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer", "description": "A key, `hh_…`, as a bearer token."},
            "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
        },
    }
    return document | {"components": components}


def documented_path(path: str) -> str:
    """A route's path as the document has it: without the patterns of its parameters."""
    return _PARAMETER.sub(r"{\1}", path)


def _operation(route: Route, schemas: Schemas, failures: dict[str, Any]) -> dict[str, Any]:
    words = inspect.cleandoc(route.handler.__doc__ or "")
    operation: dict[str, Any] = {
        "operationId": operation_id(route),
        "tags": [_tag(route)],
        "summary": re.split(r"(?<=[.:;])\s", words, maxsplit=1)[0].rstrip(".:;"),
        "description": words,
        "parameters": [*_path_parameters(route), *_query_parameters(route, schemas), *_header_parameters(route)],
        "responses": _answers(route, schemas) | _errors(route, schemas, failures),
        "security": [],
    }
    if route.body is not None:
        schema = schemas.of(route.body, "validation")
        content = {JSON: {"schema": schema, "example": schemas.example(schema)}}
        operation["requestBody"] = {"required": not route.body_optional, "content": content}
    if route.scope is not None:
        operation["security"] = [{"bearer": [route.scope.value]}, {"api_key": [route.scope.value]}]
        who = "an admin key" if route.admin else "a key"
        operation["description"] = f"{words}\n\nNeeds {who} with the scope `{route.scope}`.".lstrip()
    return operation


def operation_id(route: Route) -> str:
    """Unique and stable: the resource, and what is done to it."""
    if route.operation is not None:
        return route.operation
    parts = [part for part in route.path.split("/") if part and part != "v1"]
    fixed = [re.sub(r"\W", "_", part) for part in parts if not part.startswith("{")]
    resource, rest = fixed[0], fixed[1:]
    if route.method == "GET":
        verb = "get" if parts[-1].startswith("{") or rest else "list"
        if rest and parts[-1].startswith("{"):  # one of what stands there, beside all of it
            rest[-1] = rest[-1].removesuffix("s")
        fixed = [resource, verb, *rest] if route.scope is not None or len(parts) > 1 else [resource]
    elif route.method != "POST" or not rest:
        fixed = [resource, _VERBS[route.method], *rest]
    return "_".join(fixed)


def _tags(routes: Sequence[Route]) -> list[str]:
    """In the order of the routes, but what needs no key comes last: few look for it."""
    return sorted(dict.fromkeys(_tag(route) for route in routes), key=lambda tag: tag == _UNKEYED)


def _tag(route: Route) -> str:
    return route.path.split("/")[2] if route.path.startswith("/v1/") else _UNKEYED


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    parameters = []
    for name, pattern in _PARAMETER.findall(route.path):
        prefix = id_prefix(name)
        schema: Schema = {"type": "string", "minLength": 1} if prefix is None else id_schema(prefix)
        if pattern:
            schema["pattern"] = f"^(?:{pattern})$"
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    return parameters


def _query_parameters(route: Route, schemas: Schemas) -> list[dict[str, Any]]:
    """A list is joined by commas, as `read_query` splits it."""
    if route.query is None:
        return []
    model = schemas.resolved(schemas.of(route.query, "validation"))
    parameters = []
    for name, given in model["properties"].items():
        schema = without_null(given)
        parameter = {"name": name, "in": "query", "required": name in model.get("required", ()), "schema": schema}
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": False}
        if text := schema.pop("description", None):
            parameter["description"] = text
        parameters.append(parameter)
    return parameters


def _header_parameters(route: Route) -> list[dict[str, Any]]:
    parameters = []
    if ErrorCode.PRECONDITION_FAILED in route.errors:
        text = "Entity tags, as ETag of an answer says them, or *: the version that is to be changed, and no other."
        parameters.append(_header_parameter("If-Match", {"type": "string", "examples": ["*"]}, text))
    if route.idempotent:
        text = "Done once for a key; the answer is kept for a day, and given again with Idempotency-Replayed."
        schema = {"type": "string", "pattern": "^[!-~]{1,255}$"}
        parameters.append(_header_parameter("Idempotency-Key", schema, text))
    return parameters


def _header_parameter(name: str, schema: Schema, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": text}


def _types(answer: Any) -> Mapping[str, Any]:
    """What an answer is written in, by media type."""
    if answer is None:
        return {}
    return answer.types if isinstance(answer, Media) else {JSON: answer}


def _answers(route: Route, schemas: Schemas) -> dict[str, Any]:
    answers = {}
    for status, answer in route.answers.items():
        shown: dict[str, Any] = {"description": HTTPStatus(status).phrase, "headers": _header_refs("X-Request-Id")}
        if route.scope is not None:
            shown["headers"] |= _header_refs(*_RATE_HEADERS)
        if status == HTTPStatus.CREATED:
            shown["headers"] |= _header_refs("Location")
        if route.idempotent:
            shown["headers"] |= _header_refs("Idempotency-Replayed")
        if answer is SubscriptionView:
            shown["headers"] |= _header_refs("ETag")
        for media, kind in _types(answer).items():
            content = {"schema": schemas.of(kind, "serialization")}
            if media == JSON:
                content["example"] = schemas.example(content["schema"])
            shown.setdefault("content", {})[media] = content
        answers[str(status)] = shown
    return answers


def error_codes(route: Route) -> list[ErrorCode]:
    """Every code that a route may answer."""
    codes = [*_EVERY, *route.errors]
    if route.scope is not None:
        codes += _KEYED
        codes += (code for code, meaning in MEANINGS.items() if meaning.status == HTTPStatus.TOO_MANY_REQUESTS)
    if route.body is not None:
        codes += _BODIED
    if route.idempotent:
        codes += (ErrorCode.IDEMPOTENCY_IN_FLIGHT, ErrorCode.IDEMPOTENCY_MISMATCH, ErrorCode.CONFLICT)
    if route.query is not None:
        codes.append(ErrorCode.VALIDATION_FAILED)
    if "{" in route.path:
        codes += [ErrorCode.VALIDATION_FAILED, ErrorCode.NOT_FOUND]
    return [code for code in ErrorCode if code in codes]


def _errors(route: Route, schemas: Schemas, failures: dict[str, Any]) -> dict[str, Any]:
    """References to the components, one for each set of codes that a status has, which are added where they lack.

    A status that is an answer as well is left to the answer.
    """
    by_status: dict[int, list[ErrorCode]] = {}
    for code in error_codes(route):
        by_status.setdefault(MEANINGS[code].status, []).append(code)
    errors = {}
    for status, codes in sorted(by_status.items()):
        if status in route.answers:
            continue
        name = "-".join(codes)
        failures.setdefault(name, _failure(status, codes, schemas))
        errors[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return errors


def _failure(status: int, codes: Sequence[ErrorCode], schemas: Schemas) -> dict[str, Any]:
    envelope = schemas.of(ErrorEnvelope, "serialization")
    only = {"properties": {"error": {"properties": {"code": {"enum": [code.value for code in codes]}}}}}
    headers = ["X-Request-Id"]
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE} or set(codes) & _WAITS:
        headers.append("Retry-After")
    if status == HTTPStatus.PRECONDITION_FAILED:
        headers.append("ETag")
    # Of an answer to a key, which every other error may be.
    headers += ("WWW-Authenticate",) if status == HTTPStatus.UNAUTHORIZED else _RATE_HEADERS
    examples = {}
    for code in codes:
        example = schemas.example(envelope)
        example["error"] |= {"code": code.value, "message": MEANINGS[code].text, "details": []}
        examples[code.value] = {"value": example}
    return {
        "description": "\n".join(f"- `{code}`: {MEANINGS[code].text}" for code in codes),
        "headers": _header_refs(*headers),
        "content": {JSON: {"schema": {"allOf": [envelope, only]}, "examples": examples}},
    }


def _header_refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
