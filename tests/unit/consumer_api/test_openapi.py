"""The OpenAPI document: valid, complete, and true to the routes."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web
from openapi_spec_validator import validate
from pydantic import BaseModel

from consumer_api.app import all_routes
from consumer_api.errors import MEANINGS, ErrorCode
from consumer_api.openapi import documented_path, error_codes, make_document
from consumer_api.route import Route
from consumer_api.subscription_views import SubscriptionView
from schemas.inputs import read_input
from schemas.operational import OperationalType
from schemas.scopes import Scope


@cache
def _document() -> dict[str, Any]:
    return make_document(all_routes(), version="1.2.3")


def _operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def undocumented(routes: list[Route], document: dict[str, Any]) -> list[str]:
    """What the routes and the document do not have in common, and the routes that do not say what they answer."""
    declared = {(route.method, documented_path(route.path)) for route in routes}
    known = _operations(document).keys()
    unequal = [f"{method} {path}" for method, path in declared ^ known]
    return unequal + [f"{route.path} answers nothing" for route in routes if not route.answers]


def _parameters(operation: dict[str, Any], where: str) -> set[str]:
    return {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == where}


def test_the_document_is_valid() -> None:
    validate(_document())


def test_the_routes_and_the_document_are_the_same() -> None:
    assert undocumented(all_routes(), _document()) == []


def test_a_route_too_many_on_either_side_and_one_without_an_answer_are_noticed() -> None:
    routes = all_routes()
    fewer = make_document(routes[1:], version="1")
    assert undocumented(routes, fewer) == [f"{routes[0].method} {routes[0].path}"]
    assert undocumented(routes[1:], _document()) == [f"{routes[0].method} {routes[0].path}"]
    silent = replace(routes[0], answers={})
    assert undocumented([silent, *routes[1:]], _document()) == [f"{silent.path} answers nothing"]


@pytest.mark.parametrize("route", all_routes(), ids=lambda route: f"{route.method} {route.path}")
def test_an_operation_says_what_its_route_declares(route: Route) -> None:
    operation = _operations(_document())[route.method, documented_path(route.path)]
    assert operation["summary"], "its handler has no docstring"
    assert _parameters(operation, "path") == set(re.findall(r"\{(\w+)", route.path))
    assert _parameters(operation, "query") == set(route.query.model_fields if route.query else ())
    assert ("requestBody" in operation) == (route.body is not None)
    if route.body is not None:
        assert operation["requestBody"]["required"] != route.body_optional
        assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(route.body.__name__)
    scopes = {scope for one in operation["security"] for scopes in one.values() for scope in scopes}
    assert scopes == ({route.scope} if route.scope else set())
    assert [set(one) for one in operation["security"]] == ([{"bearer"}, {"api_key"}] if route.scope else [])
    wanted = {*route.answers, *(MEANINGS[code].status for code in error_codes(route))}
    assert operation["responses"].keys() == {str(status) for status in wanted}
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            name = answer["$ref"].rpartition("/")[2]
            codes = [code for code in error_codes(route) if MEANINGS[code].status == int(status)]
            assert name == "-".join(codes)
            assert "X-Request-Id" in _document()["components"]["responses"][name]["headers"]
        else:
            assert "X-Request-Id" in answer["headers"]


def _headers(route: Route) -> dict[int, set[str]]:
    """The headers that the document gives the answers to a route."""
    document = _document()
    responses = _operations(document)[route.method, documented_path(route.path)]["responses"]
    told = document["components"]["responses"]
    return {
        int(status): set(told[answer["$ref"].rpartition("/")[2]]["headers"] if "$ref" in answer else answer["headers"])
        for status, answer in responses.items()
    }


@pytest.mark.parametrize("route", all_routes(), ids=lambda route: f"{route.method} {route.path}")
def test_the_headers_of_answers_are_in_the_document(route: Route) -> None:
    rates = {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
    operation = _operations(_document())[route.method, documented_path(route.path)]
    for status, headers in _headers(route).items():
        assert "X-Request-Id" in headers
        if route.scope is not None:
            assert (rates <= headers) == (status != 401)
        waits = status in {429, 503} or (status == 409 and route.idempotent)
        assert ("Retry-After" in headers) == (waits and status not in route.answers)
        assert ("WWW-Authenticate" in headers) == (status == 401)
        shows_one = status in route.answers and route.answers[status] is SubscriptionView
        assert ("ETag" in headers) == (shows_one or status == 412)
        assert ("Idempotency-Replayed" in headers) == (route.idempotent and status in route.answers)
    takes_tags = ErrorCode.PRECONDITION_FAILED in route.errors
    wanted = {"If-Match"} if takes_tags else set()
    assert _parameters(operation, "header") == wanted | ({"Idempotency-Key"} if route.idempotent else set())


def test_the_ids_of_operations_are_unique_and_the_names_of_types_are_plain() -> None:
    ids = [operation["operationId"] for operation in _operations(_document()).values()]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z0-9_]+", one) for one in ids)
    assert all(re.fullmatch(r"[A-Z][A-Za-z0-9]+", name) for name in _document()["components"]["schemas"])


def test_every_code_and_every_scope_that_is_asked_for_is_in_the_document() -> None:
    assert set(_document()["components"]["schemas"]["ErrorCode"]["enum"]) == set(ErrorCode)
    asked = {route.scope for route in all_routes() if route.scope}
    shown = str([operation["security"] for operation in _operations(_document()).values()])
    assert asked == {scope for scope in Scope if f"'{scope}'" in shown}


def test_a_list_in_a_query_is_joined_by_commas_and_an_id_has_its_form() -> None:
    operation = _operations(_document())["GET", "/v1/deliveries"]
    by_name = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert (by_name["status"]["style"], by_name["status"]["explode"]) == ("form", False)
    assert by_name["event_id"]["schema"]["pattern"].startswith("^evt_")
    assert not any("null" in str(parameter["schema"]) for parameter in by_name.values())


def _media(node: Any) -> list[dict[str, Any]]:
    """Every media type of the document that has examples."""
    if isinstance(node, list):
        return [found for one in node for found in _media(one)]
    if not isinstance(node, dict):
        return []
    own = [node] if "schema" in node and ("example" in node or "examples" in node) and "in" not in node else []
    return own + [found for name, one in node.items() if name != "schemas" for found in _media(one)]


def test_every_example_fits_its_schema() -> None:
    shown = _media(_document())
    assert len(shown) > len(all_routes())
    for media in shown:
        schema = {"components": _document()["components"], "allOf": [media["schema"]]}
        validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        for example in [one["value"] for one in media.get("examples", {}).values()] or [media["example"]]:
            assert [error.message for error in validator.iter_errors(example)] == []


@pytest.mark.parametrize(
    "model", sorted({route.body for route in all_routes() if route.body}, key=str), ids=lambda model: model.__name__
)
def test_the_example_of_a_body_is_one_that_the_api_takes(model: type[BaseModel]) -> None:
    for operation in _operations(_document()).values():
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content and content["schema"]["$ref"].endswith(f"/{model.__name__}"):
            read_input(model, content["example"])
            assert content["example"]
            return
    pytest.fail("no operation has it")


def test_what_is_sent_is_in_the_document() -> None:
    sent = _document()["webhooks"]
    assert sent.keys() >= {"event", "event_cloudevents_structured", "event_cloudevents_binary", *OperationalType}
    for name in OperationalType:
        body = sent[name]["post"]["requestBody"]["content"]["application/json"]
        assert body["example"]["type"] == name
    for one in sent.values():
        assert _parameters(one["post"], "header") >= {"webhook-id", "webhook-timestamp", "webhook-signature"}


def test_a_new_route_is_documented_by_what_it_declares() -> None:
    async def teapot(_: web.Request) -> web.Response:
        """Tea. Or none."""
        return web.Response()

    path = r"/v1/pots/{pot:[a-z]+}/tea"
    route = Route(method="GET", path=path, handler=teapot, scope=Scope.EVENTS_READ, admin=True, answers={204: None})
    document = make_document([route], version="1")
    validate(document)
    operation = document["paths"]["/v1/pots/{pot}/tea"]["get"]
    assert (operation["operationId"], operation["tags"], operation["summary"]) == ("pots_get_tea", ["pots"], "Tea")
    assert operation["parameters"][0]["schema"]["pattern"] == "^(?:[a-z]+)$"
    assert operation["description"] == "Tea. Or none.\n\nNeeds an admin key with the scope `events:read`."
