"""A subscription's format and signature: what a caller may ask for, and what does not go together."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidInput
from schemas.formats import (
    DEFAULT_SIGNATURE,
    Format,
    HmacSignature,
    StandardSignature,
    Version,
    read_signature,
    request_problems,
    write_signature,
)
from schemas.inputs import read_input
from schemas.signatures import Algorithm, format_keypair
from schemas.subscriptions import SubscriptionPatch
from tests.unit.schemas.subscription_inputs import SECRET, create, problems

HMAC = {"scheme": "hmac", "algorithm": "sha256", "header": "X-Hub-Signature-256", "prefix": "sha256="}


def test_what_is_not_said_is_as_it_always_was() -> None:
    made = create()
    assert (made.format, made.signature, made.handshake) == (Format.STANDARD, DEFAULT_SIGNATURE, False)
    assert write_signature(made.signature) == {"scheme": "standard", "versions": ["v1"]}


@pytest.mark.parametrize(
    ("asked", "signature"),
    [
        ({"scheme": "standard"}, StandardSignature(versions=(Version.V1,))),
        ({"scheme": "standard", "versions": ["v1a"]}, StandardSignature(versions=(Version.V1A,))),
        ({"scheme": "standard", "versions": ["v1a", "v1"]}, StandardSignature(versions=(Version.V1, Version.V1A))),
        (
            HMAC,
            HmacSignature(scheme="hmac", algorithm=Algorithm.SHA256, header="X-Hub-Signature-256", prefix="sha256="),
        ),
        (
            {"scheme": "hmac", "algorithm": "sha1", "header": "signature"},
            HmacSignature(scheme="hmac", algorithm=Algorithm.SHA1, header="signature"),
        ),
    ],
)
def test_signatures(asked: dict[str, object], signature: object) -> None:
    made = create(signature=asked).signature
    assert made == signature
    assert read_signature(write_signature(made)) == made
    assert read_input(SubscriptionPatch, {"signature": asked}).signature == made


@pytest.mark.parametrize(
    ("asked", "field", "why"),
    [
        ("v1", "signature", 'the scheme "standard" or "hmac"'),
        ({}, "signature", 'the scheme "standard" or "hmac"'),
        ({"scheme": "md5"}, "signature", 'the scheme "standard" or "hmac"'),
        ({"scheme": ["hmac"]}, "signature", 'the scheme "standard" or "hmac"'),
        (None, "signature", 'the scheme "standard" or "hmac"'),
        ({"scheme": "standard", "versions": []}, "signature.versions", "at least 1"),
        ({"scheme": "standard", "versions": ["v1", "v1"]}, "signature.versions", "twice"),
        ({"scheme": "standard", "versions": ["v2"]}, "signature.versions.0", "'v1' or 'v1a'"),
        ({"scheme": "standard", "versions": "v1"}, "signature.versions", "must be a list"),
        ({"scheme": "standard", "header": "X"}, "signature.header", "not a known field"),
        (HMAC | {"algorithm": "md5"}, "signature.algorithm", "'sha256' or 'sha1'"),
        (HMAC | {"header": "Host"}, "signature.header", "set for every request"),
        (HMAC | {"header": "ce-id"}, "signature.header", "set for every request"),
        (HMAC | {"header": "Webhook-Signature"}, "signature.header", "set for every request"),
        (HMAC | {"header": "a b"}, "signature.header", "letters, digits"),
        (HMAC | {"header": ""}, "signature.header", "letters, digits"),
        (HMAC | {"prefix": " x"}, "signature.prefix", "printable ASCII"),
        (HMAC | {"prefix": "é"}, "signature.prefix", "printable ASCII"),
        (HMAC | {"prefix": "a\r\n"}, "signature.prefix", "printable ASCII"),
        (HMAC | {"prefix": "x" * 65}, "signature.prefix", "64"),
        (HMAC | {"versions": ["v1"]}, "signature.versions", "not a known field"),
        ({"scheme": "hmac", "algorithm": "sha256"}, "signature.header", "is required"),
    ],
)
def test_what_is_no_signature(asked: object, field: str, why: str) -> None:
    found = problems(signature=asked)
    assert list(found) == [field]
    assert why in found[field]
    if asked is not None:
        with pytest.raises(InvalidInput) as raised:
            read_input(SubscriptionPatch, {"signature": asked})
        assert [problem.field for problem in raised.value.problems] == [field]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"format": "xml"}, "format"),
        ({"handshake": "yes"}, "handshake"),
        ({"handshake": 1}, "handshake"),
        ({"secret": format_keypair(bytes(32))}, "secret"),
        ({"secret": SECRET, "signature": {"scheme": "standard", "versions": ["v1a"]}}, "secret"),
        ({"secret": "short", "signature": HMAC}, "secret"),
        ({"headers": {"CE-Id": "1"}}, "headers"),
    ],
)
def test_what_else_is_refused(fields: dict[str, object], field: str) -> None:
    assert list(problems(**fields)) == [field]


def test_a_secret_is_not_judged_by_a_signature_that_is_at_fault_itself() -> None:
    assert list(problems(secret="x", signature={"scheme": "md5"})) == ["signature"]


@pytest.mark.parametrize(
    ("whole", "fields"),
    [
        ({}, []),
        ({"format": Format.CLOUDEVENTS_BINARY, "handshake": True}, []),
        ({"format": Format.CLOUDEVENTS_STRUCTURED, "handshake": True}, []),
        ({"handshake": True}, ["handshake"]),
        ({"signature": read_signature(HMAC)}, []),
        ({"signature": read_signature(HMAC), "header_names": ("X-A", "x-hub-SIGNATURE-256")}, ["signature.header"]),
        ({"header_names": ("X-Hub-Signature-256",)}, []),
        (
            {"handshake": True, "signature": read_signature(HMAC), "header_names": ("X-Hub-Signature-256",)},
            ["handshake", "signature.header"],
        ),
    ],
)
def test_what_of_a_whole_subscription_does_not_go_together(whole: dict[str, object], fields: list[str]) -> None:
    plain = {"format": Format.STANDARD, "signature": DEFAULT_SIGNATURE, "handshake": False, "header_names": ()}
    assert [problem.field for problem in request_problems(**plain | whole)] == fields  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(["scheme", "algorithm", "header", "prefix", "versions", "x"]), st.text()))
def test_any_signature_is_one_or_invalid_input(asked: dict[str, str]) -> None:
    with suppress(InvalidInput):
        made = create(signature=asked).signature
        assert read_signature(write_signature(made)) == made
