"""What a request is let in by: each header, the request for a token, and every answer that a token server may give."""

import base64
from typing import Any
from urllib.parse import parse_qs

import orjson
import pytest
from pydantic import TypeAdapter

from dispatcher.core.credentials import (
    MAX_ANSWER_BYTES,
    Granted,
    read_grant,
    static_headers,
    token_request,
    usable_s,
)
from schemas.deliveries import Answered
from schemas.destination_auth import Auth, OAuth2Auth

SECRET = "s%&=:\u007e +canary"


def client(**more: Any) -> OAuth2Auth:
    given = {"type": "oauth2", "token_url": "https://id.test:8443/t?x=1", "client_id": "c:1", "client_secret": SECRET}
    return OAuth2Auth.model_validate(given | more)


def answer(body: object, status: int = 200) -> Answered:
    return Answered(status, body if isinstance(body, bytes) else orjson.dumps(body), None, 1, None)


def refused(body: object, status: int = 200) -> str:
    said = read_grant(client(), answer(body, status))
    assert isinstance(said, str)
    assert said.startswith("the token server at id.test:8443 answered ")
    assert "canary" not in said
    return said.removeprefix("the token server at id.test:8443 answered ")


@pytest.mark.parametrize(
    ("auth", "headers"),
    [
        # The example of RFC 7617 section 2, and that of section 2.1, in UTF-8.
        ({"type": "basic", "username": "Aladdin", "password": "open sesame"}, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ({"type": "basic", "username": "test", "password": "123\u00a3"}, "Basic dGVzdDoxMjPCow=="),
        ({"type": "bearer", "token": "mF_9.B5f-4.1JqM"}, "Bearer mF_9.B5f-4.1JqM"),  # RFC 6750 section 2.1
    ],
)
def test_the_header_authorization(auth: dict[str, Any], headers: str) -> None:
    assert static_headers(TypeAdapter[Auth](Auth).validate_python(auth)) == {"Authorization": headers}


def test_the_other_headers() -> None:
    key = {"type": "api_key", "header": "X-Key", "value": "v w"}
    assert static_headers(TypeAdapter[Auth](Auth).validate_python(key)) == {"X-Key": "v w"}
    assert static_headers(None) == {}
    assert static_headers(client()) == {}


def test_a_client_that_shows_itself_by_basic_is_form_encoded_first() -> None:
    headers, form = token_request(client(scope="a b", audience="https://x"))
    pair = base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode()
    assert pair == "c%3A1:s%25%26%3D%3A~+%2Bcanary"
    assert parse_qs(form.decode(), strict_parsing=True) == {
        "grant_type": ["client_credentials"],
        "scope": ["a b"],
        "audience": ["https://x"],
    }


def test_a_client_that_shows_itself_in_the_form_sends_no_header_for_it() -> None:
    headers, form = token_request(client(client_auth="post"))
    assert "Authorization" not in headers
    assert parse_qs(form.decode(), strict_parsing=True) == {
        "grant_type": ["client_credentials"],
        "client_id": ["c:1"],
        "client_secret": [SECRET],
    }


@pytest.mark.parametrize(
    ("grant", "lifetime_s"),
    [
        ({"expires_in": 3600}, 3540),
        ({"expires_in": 100}, 90),
        ({"expires_in": "3600"}, 3540),
        ({"expires_in": 0}, 0),
        ({"expires_in": 1.5}, 1.35),
        ({"expires_in": 10**9}, 86_340),
        ({"expires_in": None}, 270),
        ({}, 270),
        ({"token_type": "BEARER", "scope": "less"}, 270),
    ],
)
def test_a_token_is_used_until_shortly_before_it_expires(grant: dict[str, Any], lifetime_s: float) -> None:
    granted = read_grant(client(), answer({"access_token": "t0k", "token_type": "Bearer"} | grant))
    assert isinstance(granted, Granted)
    assert granted.token == "t0k"
    assert granted.usable_s == pytest.approx(lifetime_s)
    assert "t0k" not in repr(granted)


def test_the_leeway_is_a_tenth_or_a_minute() -> None:
    assert [usable_s(seconds) for seconds in (0, 10, 600, 601)] == [0, 9, 540, 541]


GOOD = {"access_token": "canary", "token_type": "bearer", "expires_in": 60}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "200 with what is no JSON object"),
        (b"access_token=canary&token_type=bearer", "200 with what is no JSON object"),
        ([GOOD], "200 with what is no JSON object"),
        (b"\xff", "200 with what is no JSON object"),
        (b"[" * 20_000, "200 with what is no JSON object"),
        ({}, "200 without an access_token that a header can hold"),
        (GOOD | {"access_token": "can\nary"}, "200 without an access_token that a header can hold"),
        (GOOD | {"access_token": "can\u00e4ry"}, "200 without an access_token that a header can hold"),
        (GOOD | {"access_token": "can ary"}, "200 without an access_token that a header can hold"),
        (GOOD | {"access_token": ["canary"]}, "200 without an access_token that a header can hold"),
        (GOOD | {"access_token": "x" * 16_385}, "200 without an access_token that a header can hold"),
        (GOOD | {"token_type": "mac"}, "200 with a token whose token_type is not Bearer"),
        ({"access_token": "canary"}, "200 with a token whose token_type is not Bearer"),
        (GOOD | {"expires_in": -1}, "200 with an expires_in that is no number of seconds"),
        (GOOD | {"expires_in": True}, "200 with an expires_in that is no number of seconds"),
        (GOOD | {"expires_in": "soon"}, "200 with an expires_in that is no number of seconds"),
        (GOOD | {"expires_in": [60]}, "200 with an expires_in that is no number of seconds"),
        (b" " * MAX_ANSWER_BYTES, "with 65536 bytes or more"),
    ],
    ids=range(18),
)
def test_an_answer_that_is_no_grant_is_told_without_what_it_says(body: object, said: str) -> None:
    assert refused(body) == said


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"error": "invalid_client", "error_description": "canary"}, ": invalid_client"),
        ({"error": "invalid_scope"}, ": invalid_scope"),
        ({"error": "canary <b>"}, ""),
        ({"error": "CANARY!"}, ""),
        ({"error": "x" * 41}, ""),
        ({"error": 5}, ""),
        (["invalid_client"], ""),
        (b"<html>canary</html>", ""),
        (b"", ""),
    ],
)
@pytest.mark.parametrize("status", [400, 401, 302, 500, 201])
def test_a_refusal_is_told_by_its_status_and_its_code(body: object, code: str, status: int) -> None:
    assert refused(body, status) == f"{status}{code}"


def test_a_code_that_holds_the_secret_is_not_repeated() -> None:
    echo = read_grant(client(client_secret="hunter2"), answer({"error": "bad_hunter2"}, 400))
    assert echo == "the token server at id.test:8443 answered 400"
