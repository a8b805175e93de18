"""`auth` and `tls` of a subscription: what passes, what does not, and that no error or repr tells a secret."""

from typing import Any

import pytest

from schemas.destination_auth import (
    Auth,
    Tls,
    auth_header,
    destination_clashes,
    read_auth,
    read_tls,
    shown_auth,
    write_auth,
    write_tls,
)
from schemas.errors import SecretUnreadable
from schemas.inputs import read_input
from schemas.subscriptions import SubscriptionPatch
from tests.unit.schemas.subscription_inputs import create, problems

CANARY = "c4nary"
BASIC: dict[str, Any] = {"type": "basic", "username": "u", "password": CANARY}
BEARER: dict[str, Any] = {"type": "bearer", "token": CANARY}
API_KEY: dict[str, Any] = {"type": "api_key", "header": "X-Key", "value": CANARY}
OAUTH2: dict[str, Any] = {
    "type": "oauth2",
    "token_url": "https://id.example.com/token",
    "client_id": "c",
    "client_secret": CANARY,
}
WHOLE: dict[str, Any] = {"client_certificate": "C", "client_key": CANARY, "ca": "A"}
EVERY = [BASIC, BEARER, API_KEY, OAUTH2]


def auth(given: dict[str, Any]) -> Auth:
    made = create(auth=given).auth
    assert made is not None
    return made


@pytest.mark.parametrize("given", EVERY, ids=lambda one: one["type"])
def test_what_was_stored_is_read_again_and_no_repr_tells_it(given: dict[str, Any]) -> None:
    import orjson

    made = auth(given)
    stored = write_auth(made)
    assert stored.items() >= given.items()
    assert read_auth(orjson.dumps(stored)) == made
    assert CANARY not in repr(made)
    assert CANARY not in repr(create(auth=given))
    shown = shown_auth(made)
    assert CANARY not in shown.values()
    assert "[redacted]" in shown.values()


def test_equal_clients_are_one_and_another_secret_is_another() -> None:
    assert hash(auth(OAUTH2)) == hash(auth(OAUTH2))
    for change in ({"client_secret": "x"}, {"scope": "x"}, {"audience": "x"}, {"client_auth": "post"}):
        assert auth(OAUTH2 | change) != auth(OAUTH2)


@pytest.mark.parametrize(
    ("base", "changes", "field", "why"),
    [
        (BASIC, {"username": "a:b"}, "auth.username", "without a colon"),
        (BASIC, {"username": ""}, "auth.username", "without a colon"),
        (BASIC, {"username": "u" * 257}, "auth.username", "256 characters"),
        (BASIC, {"password": "a\nb"}, "auth.password", "control characters"),
        (BASIC, {"password": None}, "auth.password", "string"),
        (BEARER, {"token": "a b"}, "auth.token", "without spaces"),
        (BEARER, {"token": "\u00e9"}, "auth.token", "printable ASCII"),
        (BEARER, {"token": "a\r\nX: y"}, "auth.token", "printable ASCII"),
        (BEARER, {"token": "t" * 8193}, "auth.token", "8192 characters"),
        (BEARER, {"token": "[redacted]"}, "auth.token", "must be the value itself"),
        (API_KEY, {"header": "Host"}, "auth.header", "must not set Host"),
        (API_KEY, {"header": "webhook-id"}, "auth.header", "must not set webhook-id"),
        (API_KEY, {"header": "a b"}, "auth.header", "names of 1 to"),
        (API_KEY, {"value": " k"}, "auth.value", "no space at either end"),
        (OAUTH2, {"token_url": "ftp://x/"}, "auth.token_url", "https://"),
        (OAUTH2, {"token_url": "https://u:p@x/"}, "auth.token_url", "user name or password"),
        (OAUTH2, {"client_auth": "jwt"}, "auth.client_auth", "'basic' or 'post'"),
        (OAUTH2, {"scope": "a  b"}, "auth.scope", "single spaces"),
        (OAUTH2, {"scope": ""}, "auth.scope", "single spaces"),
        (OAUTH2, {"audience": "a b"}, "auth.audience", "without spaces"),
        (OAUTH2, {"password": "x"}, "auth.password", "is not a known field"),
    ],
)
def test_each_field_at_fault_is_named_and_never_its_value(
    base: dict[str, Any], changes: dict[str, Any], field: str, why: str
) -> None:
    told = problems(auth=base | changes)
    assert list(told) == [field]
    assert why in told[field]
    assert CANARY not in str(told)


@pytest.mark.parametrize("given", ["basic", {}, {"type": "digest"}, {"type": None}, {"type": ["basic"]}, 5, []])
def test_what_is_of_no_known_type_is_told_the_types(given: object) -> None:
    assert problems(auth=given) == {"auth": "must be null, or an object with a type: basic, bearer, api_key or oauth2"}


def test_what_may_be_unusual_and_is_taken() -> None:
    assert auth(BASIC | {"username": "m\u00fcller", "password": ""}).type == "basic"
    assert auth(API_KEY | {"header": "Authorization", "value": "Token abc"}).type == "api_key"
    assert auth(OAUTH2 | {"scope": "a:b https://x/y", "audience": None}).type == "oauth2"


@pytest.mark.parametrize(
    ("given", "field", "why"),
    [
        ({}, "tls", "or ca"),
        ({"client_key": CANARY}, "tls", "together"),
        ({"client_certificate": "x", "ca": "x"}, "tls", "together"),
        ({"ca": "\u00e9"}, "tls.ca", "certificates in PEM form"),
        ({"ca": ""}, "tls.ca", "certificates in PEM form"),
        ({"ca": "x" * 32_769}, "tls.ca", "32768 characters"),
        (WHOLE | {"client_key": "x" * 8193}, "tls.client_key", "8192 characters"),
        (WHOLE | {"client_key": "[redacted]"}, "tls.client_key", "must be the value itself"),
        (WHOLE | {"client_certificate": "x" * 16_385}, "tls.client_certificate", "16384 characters"),
        ("pem", "tls", "must be an object"),
    ],
)
def test_what_is_wrong_with_tls_is_told(given: object, field: str, why: str) -> None:
    told = problems(tls=given)
    assert list(told) == [field]
    assert why in told[field]
    assert CANARY not in str(told)


def test_tls_is_read_as_it_was_stored() -> None:
    import orjson

    for given in (WHOLE, {"ca": "A"}, {"client_certificate": "C", "client_key": "K"}):
        made = Tls.model_validate(given)
        assert write_tls(made) == given
        assert read_tls(orjson.dumps(write_tls(made))) == made
        assert CANARY not in repr(made)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"type":"basic","username":"c4nary"}', b"\xff"])
def test_what_was_not_stored_by_us_is_unreadable_and_not_shown(data: bytes) -> None:
    for read in (read_auth, read_tls):
        with pytest.raises(SecretUnreadable) as caught:
            read(data)
        assert CANARY not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_patch_tells_null_from_nothing() -> None:
    assert read_input(SubscriptionPatch, {}).changes() == {}
    assert read_input(SubscriptionPatch, {"auth": None, "tls": None}).changes() == {"auth": None, "tls": None}


@pytest.mark.parametrize(
    ("given", "headers", "clash"),
    [
        (BASIC, ["AUTHORIZATION"], True),
        (BEARER, ["X-A", "authorization"], True),
        (OAUTH2, ["Authorization"], True),
        (API_KEY, ["x-key"], True),
        (API_KEY, ["authorization"], False),
        (BASIC, ["X-A"], False),
    ],
)
def test_a_header_that_both_set_is_a_clash(given: dict[str, Any], headers: list[str], clash: bool) -> None:
    told = destination_clashes("http://x/", headers, auth(given), None)
    assert [problem.field for problem in told] == (["auth"] if clash else [])
    assert all(auth_header(auth(given)) in problem.message for problem in told)


def test_tls_wants_https_and_nothing_wants_nothing() -> None:
    tls = Tls.model_validate({"ca": "A"})
    assert [problem.field for problem in destination_clashes("http://x/", [], None, tls)] == ["tls"]
    assert destination_clashes("HTTPS://x/", [], None, tls) == []
    assert destination_clashes("http://x/", ["authorization"], None, None) == []
