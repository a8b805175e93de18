"""A subscription's secrets through its life: it can sign at every step, and keeps what it knew."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from consumer_api.signing import (
    MAX_LIVE_SECRETS,
    check_number,
    first_secrets,
    made,
    missing,
    next_secrets,
    rotated,
)
from schemas.errors import InvalidInput
from schemas.formats import Kind, Scheme, Signature, Version, read_signature, secret_fault
from schemas.signatures import format_keypair, format_secret
from schemas.subscriptions import Secret, signing

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
V1 = read_signature({"scheme": "standard", "versions": ["v1"]})
V1A = read_signature({"scheme": "standard", "versions": ["v1a"]})
BOTH = read_signature({"scheme": "standard", "versions": ["v1a", "v1"]})
HMAC = read_signature({"scheme": "hmac", "algorithm": "sha256", "header": "X-Hub-Signature-256", "prefix": "sha256="})
SHARED, KEYPAIR = format_secret(bytes(range(32))), format_keypair(bytes(range(32)))


def kinds(secrets: list[Secret]) -> list[Kind]:
    return [secret.kind for secret in secrets]


@pytest.mark.parametrize("signature", [V1, V1A, BOTH, HMAC])
def test_what_is_made_fits(signature: Signature) -> None:
    secrets = first_secrets(signature, None)
    assert kinds(secrets) == list(signature.kinds)
    assert [secret_fault(secret.text, signature) for secret in secrets] == [None] * len(secrets)
    assert signing(secrets, signature) == secrets
    assert {secret.text for secret in first_secrets(signature, None)}.isdisjoint(secret.text for secret in secrets)


@pytest.mark.parametrize(
    ("signature", "given", "expected"),
    [
        (V1, SHARED, [Kind.V1]),
        (V1A, KEYPAIR, [Kind.V1A]),
        (BOTH, SHARED, [Kind.V1, Kind.V1A]),
        (BOTH, KEYPAIR, [Kind.V1, Kind.V1A]),
        (HMAC, "It's a Secret to Everybody", [Kind.TEXT]),
        (HMAC, SHARED, [Kind.TEXT]),
    ],
)
def test_a_given_secret_is_one_of_them(signature: Signature, given: str, expected: list[Kind]) -> None:
    secrets = first_secrets(signature, SecretStr(given))
    assert kinds(secrets) == expected
    assert given in {secret.text for secret in secrets}


@pytest.mark.parametrize(
    ("signature", "given", "why"),
    [
        (V1, KEYPAIR, "signs v1a, which"),
        (V1A, SHARED, "signs v1, which"),
        (BOTH, "It's a Secret to Everybody", "whsec_"),
        (HMAC, "hush" * 3, "16 to 256"),
        (HMAC, "hush" * 65, "16 to 256"),
        (HMAC, "hush" * 5 + " ", "no space"),
        (HMAC, "hush" * 5 + "é", "ASCII"),
        (HMAC, "hush" * 5 + "\n", "printable"),
    ],
)
def test_one_that_does_not_fit_is_refused_unseen(signature: Signature, given: str, why: str) -> None:
    with pytest.raises(InvalidInput) as at_first:
        first_secrets(signature, SecretStr(given))
    with pytest.raises(InvalidInput) as at_rotation:
        next_secrets(signature, SecretStr(given), None)
    for raised in (at_first, at_rotation):
        (problem,) = raised.value.problems
        assert problem.field == "secret"
        assert why in problem.message
        assert given not in problem.message


@pytest.mark.parametrize(
    ("signature", "given", "version", "expected"),
    [
        (V1, None, None, [Kind.V1]),
        (BOTH, None, None, [Kind.V1, Kind.V1A]),
        (BOTH, None, Version.V1A, [Kind.V1A]),
        (BOTH, None, Version.V1, [Kind.V1]),
        (BOTH, SHARED, None, [Kind.V1]),
        (BOTH, KEYPAIR, Version.V1A, [Kind.V1A]),
        (HMAC, None, None, [Kind.TEXT]),
    ],
)
def test_a_rotation_brings_what_signs_unless_it_is_told_which(
    signature: Signature, given: str | None, version: Version | None, expected: list[Kind]
) -> None:
    assert kinds(next_secrets(signature, given and SecretStr(given), version)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("signature", "given", "version", "field"),
    [(V1, None, Version.V1A, "version"), (HMAC, None, Version.V1, "version"), (BOTH, SHARED, Version.V1A, "secret")],
)
def test_a_version_that_does_not_sign_is_not_rotated(
    signature: Signature, given: str | None, version: Version, field: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        next_secrets(signature, given and SecretStr(given), version)  # type: ignore[arg-type]
    assert [problem.field for problem in raised.value.problems] == [field]


def test_the_new_secret_signs_for_good_and_the_others_until_the_grace_is_over() -> None:
    known = [Secret("a"), Secret("b", NOW + HOUR / 2)]
    assert rotated(known, [Secret("c")], V1, now=NOW, grace=HOUR) == [
        Secret("c"),
        Secret("a", NOW + HOUR),
        Secret("b", NOW + HOUR / 2),
    ]


def test_a_grace_only_ever_shortens() -> None:
    assert rotated([Secret("b", NOW + 3 * HOUR)], [Secret("c")], V1, now=NOW, grace=HOUR)[1] == Secret("b", NOW + HOUR)


def test_without_grace_the_others_are_gone() -> None:
    assert rotated([Secret("a"), Secret("b", NOW + HOUR)], [Secret("c")], V1, now=NOW, grace=timedelta(0)) == [
        Secret("c")
    ]


def test_rotating_to_a_secret_that_signs_already_keeps_it_once() -> None:
    assert rotated([Secret("a"), Secret("b", NOW + HOUR)], [Secret("b")], V1, now=NOW, grace=HOUR) == [
        Secret("b"),
        Secret("a", NOW + HOUR),
    ]


def test_the_other_kind_stays_as_it_is() -> None:
    known = [Secret(SHARED), Secret(KEYPAIR), Secret(SHARED, scheme=Scheme.HMAC)]
    (new,) = next_secrets(BOTH, None, Version.V1)
    assert rotated(known, [new], BOTH, now=NOW, grace=HOUR) == [new, Secret(SHARED, NOW + HOUR), *known[1:]]


def test_so_many_sign_at_most() -> None:
    known = [Secret(f"{number}") for number in range(MAX_LIVE_SECRETS)] + [made(Kind.TEXT)] * 3
    check_number(known, V1)
    with pytest.raises(Exception, match="grace_s of 0"):
        check_number([*known, Secret("one more")], V1)


def test_a_keypair_of_before_there_were_versions_goes_on_signing() -> None:
    assert signing([Secret(KEYPAIR), made(Kind.TEXT)], V1) == [Secret(KEYPAIR)]
    assert signing([Secret(KEYPAIR)], HMAC) == []


def test_what_was_rotated_between_versions_before_there_were_any_signs_as_it_did() -> None:
    """Each signed by its own version until it ended, and the newest for good."""
    shared = made(Kind.V1)
    ended = Secret(shared.text, NOW - HOUR)  # nobody forgets it before the next rotation
    assert Secret(KEYPAIR) in signing([Secret(KEYPAIR), ended], V1)
    in_grace = [shared, Secret(KEYPAIR, NOW + HOUR)]
    assert signing(in_grace, V1) == in_grace


def test_what_signed_for_want_of_a_better_one_is_replaced_by_it_with_its_grace() -> None:
    new = made(Kind.V1)
    after = rotated([Secret(KEYPAIR)], [new], V1, now=NOW, grace=HOUR)
    assert after == [new, Secret(KEYPAIR, NOW + HOUR)]
    assert signing(after, V1) == after


steps = st.lists(
    st.sampled_from([V1, V1A, BOTH, HMAC]) | st.tuples(st.just("rotate"), st.sampled_from([0, 1, 3])), max_size=12
)


@given(first=st.sampled_from([V1, V1A, BOTH, HMAC]), changes=steps)
def test_whatever_is_changed_it_can_sign_by_every_kind_and_what_comes_back_is_what_it_was(
    first: Signature, changes: list[Any]
) -> None:
    """A subscription through changes of its signature and rotations, an hour between them."""
    signature, secrets, now = first, first_secrets(first, None), NOW
    for change in changes:
        now += HOUR
        secrets = [secret for secret in secrets if secret.live(now)]
        if isinstance(change, tuple):
            new = next_secrets(signature, None, None)
            before = {secret.kind: secret for secret in secrets if secret.expires_at is None}
            secrets = rotated(secrets, new, signature, now=now, grace=change[1] * HOUR)
            assert {secret for secret in before.values() if secret.kind not in signature.kinds} <= set(secrets)
        else:
            signature = change
            secrets = [*missing(signature, secrets), *secrets]
        lasting = [secret.kind for secret in signing(secrets, signature) if secret.expires_at is None]
        assert sorted(lasting) == sorted(signature.kinds)
        assert missing(signature, secrets) == []
