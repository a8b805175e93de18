"""Secrets that an endpoint says back are not kept; the rest of its answer is, byte for byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.echo import MIN_CHARS, to_hide, without_echo
from infra.egress_failures import short
from schemas.deliveries import Answered, Failure, NoAnswer

SECRET = 'hush"hush/hush\\hush'
IN_JSON = json.dumps(SECRET)[1:-1]
PRINTABLE = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="*"), min_size=MIN_CHARS, max_size=40
)


def answered(body: bytes, **headers: str) -> Answered:
    return Answered(200, body, None, 1, None, headers)


def kept(body: bytes, *secrets: str) -> bytes:
    result = without_echo(answered(body), to_hide(secrets))
    assert isinstance(result, Answered)
    return result.body


@pytest.mark.parametrize("value", [SECRET, f"Bearer {SECRET}", f"Bearer a {SECRET}"])
@pytest.mark.parametrize("written", [SECRET, IN_JSON, IN_JSON.replace("/", "\\/")])
def test_it_is_found_as_it_was_sent_and_in_json_after_its_scheme_or_without_one(value: str, written: str) -> None:
    body = kept(f"you sent {value.replace(SECRET, written)}; and more".encode(), value)
    assert b"hush" not in body
    assert body.startswith(b"you sent ")
    assert body.endswith(b"; and more")


def test_what_has_a_space_is_hidden_whole_and_after_it() -> None:
    key = "correcthorsebattery staple-of-words"
    assert kept(f"X-Key: {key}; {key.split()[1]}".encode(), key) == b"X-Key: ***; ***"
    assert kept(f"X-Key: {key[:12]}".encode(), key) == b"X-Key: ***"


@pytest.mark.parametrize("scheme", ["Bearer", "token", "Splunk"])
def test_a_reason_that_leaves_out_spaces_is_no_way_past(scheme: str) -> None:
    credentials = "  first-part  a  second-part"
    said = short(f"{scheme} {credentials} {credentials}.")
    result = without_echo(NoAnswer(Failure.INVALID_RESPONSE, said, 1, None), to_hide([f"{scheme} {credentials}"]))
    assert isinstance(result, NoAnswer)
    assert result.reason == "*** ***."


@pytest.mark.parametrize("length", range(MIN_CHARS, len(SECRET)))
def test_it_is_found_where_the_end_of_what_is_kept_cuts_it(length: int) -> None:
    assert kept(b"X-Key: " + SECRET[:length].encode(), SECRET) == b"X-Key: ***"


def test_headers_and_reasons_too() -> None:
    hidden = to_hide([SECRET])
    result = without_echo(answered(b"", location=f"/?key={SECRET}", server=f"{SECRET[:12]}…", via="x…"), hidden)
    assert isinstance(result, Answered)
    assert result.headers == {"location": "/?key=***", "server": "***…", "via": "x…"}
    failed = without_echo(NoAnswer(Failure.INVALID_RESPONSE, f"no HTTP: {SECRET}", 1, None), hidden)
    assert isinstance(failed, NoAnswer)
    assert failed.reason == "no HTTP: ***"


def test_what_is_short_is_not_looked_for() -> None:
    assert to_hide(["1", "a" * (MIN_CHARS - 1), "", "Bearer x"[:7]]) == ()
    assert kept(b"1 of 1", "1") == b"1 of 1"


def test_of_two_that_begin_alike_both_are_hidden() -> None:
    assert kept(b"abcdefgh, abcdefgh-ijkl.", "abcdefgh", "abcdefgh-ijkl") == b"***, ***."


@given(st.binary(max_size=60), st.lists(PRINTABLE, max_size=3), st.binary(max_size=60))
def test_no_secret_is_left_and_without_one_nothing_changes(before: bytes, secrets: list[str], after: bytes) -> None:
    clean = kept(before + b"".join(secret.encode() for secret in secrets) + after, *secrets)
    assert not [secret for secret in secrets if secret.encode() in clean]
    assert kept(before, "a secret that is not there") == before
