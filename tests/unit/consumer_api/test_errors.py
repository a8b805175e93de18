"""Every error that we know has its answer, and none tells what is inside."""

from datetime import UTC, datetime

import pytest
from aiohttp import web

from consumer_api.errors import (
    MEANINGS,
    ErrorCode,
    Fault,
    conflict,
    error_body,
    fault_of,
    not_found,
    overloaded,
    too_large,
)
from schemas import errors
from schemas.errors import HookhareError, InvalidInput, Problem

NOW = datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (not_found("event"), 404, "not_found"),
        (conflict("no"), 409, "conflict"),
        (too_large("data", 7), 413, "payload_too_large"),
        (InvalidInput.of("url", "must be"), 400, "validation_failed"),
        (errors.BrokerUnavailable("host"), 503, "broker_unavailable"),
        (errors.PublishTimeout("host"), 503, "broker_unavailable"),
        (errors.BrokerError("host"), 503, "broker_unavailable"),
        (errors.PublishRefused("host"), 503, "broker_refused"),
        (errors.Unroutable("host"), 503, "broker_refused"),
        (errors.StoreUnavailable("host"), 503, "store_unavailable"),
        (errors.SchemaMismatch("host"), 503, "store_unavailable"),
        (overloaded(5), 503, "overloaded"),
        (web.HTTPNotFound(), 404, "not_found"),
        (web.HTTPMethodNotAllowed("PUT", {"POST", "GET"}), 405, "method_not_allowed"),
        (web.HTTPRequestEntityTooLarge(7, 8), 413, "payload_too_large"),
        (web.HTTPExpectationFailed(), 417, "expectation_failed"),
        (web.HTTPBadRequest(), 400, "invalid_request"),
    ],
)
def test_known_errors_have_their_answer(error: Exception, status: int, code: str) -> None:
    fault = fault_of(error)
    assert fault is not None
    assert (fault.status, fault.code) == (status, code)
    assert "host" not in fault.message
    assert ("Retry-After" in fault.headers) == (status == 503)


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyError("x"), HookhareError("x"), web.HTTPFound("/")])
def test_a_surprise_has_none(error: Exception) -> None:
    assert fault_of(error) is None


def test_a_wrong_method_says_which_are_right() -> None:
    fault = fault_of(web.HTTPMethodNotAllowed("PUT", {"POST", "GET"}))
    assert fault is not None
    assert fault.headers["Allow"] == "GET, POST"


def test_every_problem_of_an_input_is_a_detail() -> None:
    fault = fault_of(InvalidInput([Problem("a", "must b"), Problem("c", "must d")]))
    assert fault is not None
    body = error_body(fault, now=NOW, request_id="r")
    assert body == {
        "error": {
            "code": "validation_failed",
            "message": "a: must b; c: must d",
            "details": [{"field": "a", "message": "must b"}, {"field": "c", "message": "must d"}],
            "timestamp": NOW,
            "request_id": "r",
        }
    }


def test_an_error_without_fields_has_no_details() -> None:
    body = error_body(Fault(500, ErrorCode.INTERNAL, "ours"), now=NOW, request_id="r")
    assert body["error"]["details"] == []


def test_every_code_has_its_status_and_its_meaning() -> None:
    assert MEANINGS.keys() == set(ErrorCode)
