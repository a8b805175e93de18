"""Secrets: which sign when, and what may be shown of them."""

from datetime import UTC, datetime, timedelta

import orjson
import pytest
from pydantic import SecretStr

from consumer_api.presentation import Opened
from consumer_api.sealing import live_secrets, opened, rotated, seal_headers, seal_secrets
from infra.crypto import Vault, new_key
from infra.store.subscriptions import SubscriptionRow
from schemas.subscription_headers import Header, HeaderInput
from schemas.subscriptions import Secret

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
VAULT = Vault([new_key()])
SECRET_HEADER = HeaderInput(value=SecretStr("1"))
OPEN_HEADER = HeaderInput(value=SecretStr("2"), secret=False)


def _row(*, secrets: bytes, headers: bytes | None = None) -> SubscriptionRow:
    from uuid import UUID

    return SubscriptionRow(
        UUID(int=1),
        "t",
        "https://x",
        "",
        ["#"],
        "enabled",
        None,
        15,
        {},
        None,
        None,
        False,
        headers,
        secrets,
        1,
        NOW,
        NOW,
        "open",
        None,
        None,
        0,
    )


def test_the_new_secret_signs_for_good_and_the_others_until_the_grace_is_over() -> None:
    signing = rotated([Secret("a"), Secret("b", NOW + HOUR / 2)], "c", now=NOW, grace=HOUR)
    assert signing == [Secret("c"), Secret("a", NOW + HOUR), Secret("b", NOW + HOUR / 2)]


def test_a_grace_only_ever_shortens() -> None:
    assert rotated([Secret("b", NOW + 3 * HOUR)], "c", now=NOW, grace=HOUR)[1] == Secret("b", NOW + HOUR)


def test_without_grace_the_others_are_gone() -> None:
    assert rotated([Secret("a"), Secret("b", NOW + HOUR)], "c", now=NOW, grace=timedelta(0)) == [Secret("c")]


def test_rotating_to_a_secret_that_signs_already_keeps_it_once() -> None:
    assert rotated([Secret("a"), Secret("b", NOW + HOUR)], "b", now=NOW, grace=HOUR) == [
        Secret("b"),
        Secret("a", NOW + HOUR),
    ]


def test_secrets_that_have_expired_do_not_count() -> None:
    row = _row(secrets=seal_secrets(VAULT, [Secret("a"), Secret("b", NOW), Secret("c", NOW + HOUR)]))
    assert [secret.text for secret in live_secrets(VAULT, row, NOW)] == ["a", "c"]


@pytest.mark.parametrize(
    "stored",
    [b"", b"not a token", Vault([new_key()]).encrypt(b"[]"), VAULT.encrypt(b"nonsense")],
    ids=["empty", "no token", "of another key", "no list"],
)
def test_what_cannot_be_decrypted_has_no_secrets_and_shows_nothing(stored: bytes) -> None:
    assert live_secrets(VAULT, _row(secrets=stored), NOW) == []
    assert opened(VAULT, _row(secrets=stored), NOW) is None


def test_names_and_expiries_are_what_may_be_shown() -> None:
    row = _row(
        secrets=seal_secrets(VAULT, [Secret("a"), Secret("b", NOW + HOUR), Secret("c", NOW)]),
        headers=seal_headers(VAULT, {"X-A": SECRET_HEADER, "X-B": OPEN_HEADER}),
    )
    headers = {"X-A": Header("1"), "X-B": Header("2", secret=False)}
    assert opened(VAULT, row, NOW) == Opened(headers, (None, NOW + HOUR))


def test_headers_are_sealed_as_a_json_object_and_none_as_nothing() -> None:
    sealed = seal_headers(VAULT, {"X-A": SECRET_HEADER, "X-B": OPEN_HEADER})
    assert sealed is not None
    assert orjson.loads(VAULT.decrypt(sealed)) == {"X-A": "1", "X-B": {"value": "2", "secret": False}}
    assert seal_headers(VAULT, {}) is None
