"""Secrets: how they are sealed, and what may be shown of them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from pydantic import SecretStr

from consumer_api.presentation import Opened, ShownSecret
from consumer_api.sealing import live_secrets, opened, seal_headers, seal_secrets
from infra.crypto import Vault, new_key
from infra.store.subscriptions import SubscriptionRow
from schemas.errors import SecretUnreadable
from schemas.formats import Scheme
from schemas.signatures import Ed25519Key, format_keypair, parse_secret, public_key
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


def test_secrets_that_have_expired_do_not_count() -> None:
    row = _row(secrets=seal_secrets(VAULT, [Secret("a"), Secret("b", NOW), Secret("c", NOW + HOUR)]))
    assert [secret.text for secret in live_secrets(VAULT, row, NOW)] == ["a", "c"]


@pytest.mark.parametrize(
    "stored",
    [b"", b"not a token", Vault([new_key()]).encrypt(b"[]"), VAULT.encrypt(b"nonsense")],
    ids=["empty", "no token", "of another key", "no list"],
)
def test_what_cannot_be_decrypted_shows_nothing(stored: bytes) -> None:
    with pytest.raises(SecretUnreadable):
        live_secrets(VAULT, _row(secrets=stored), NOW)
    assert opened(VAULT, _row(secrets=stored), NOW) is None


def test_names_expiries_and_public_keys_are_what_may_be_shown() -> None:
    keypair = format_keypair(bytes(range(32)))
    row = _row(
        secrets=seal_secrets(
            VAULT,
            [Secret("a"), Secret("b", NOW + HOUR), Secret("c", NOW), Secret(keypair), Secret("d", scheme=Scheme.HMAC)],
        ),
        headers=seal_headers(VAULT, {"X-A": SECRET_HEADER, "X-B": OPEN_HEADER}),
    )
    headers = {"X-A": Header("1"), "X-B": Header("2", secret=False)}
    of_v1 = (ShownSecret("v1", None), ShownSecret("v1", NOW + HOUR))
    assert opened(VAULT, row, NOW) == Opened(headers, of_v1)
    both = replace(row, signature={"scheme": "standard", "versions": ["v1", "v1a"]})
    key = parse_secret(keypair)
    assert isinstance(key, Ed25519Key)
    assert opened(VAULT, both, NOW) == Opened(headers, (*of_v1, ShownSecret("v1a", None, public_key(key))))
    text = replace(row, signature={"scheme": "hmac", "algorithm": "sha1", "header": "X-S", "prefix": ""})
    assert opened(VAULT, text, NOW) == Opened(headers, (ShownSecret(None, None),))


def test_only_a_new_secret_is_shown_and_never_in_a_repr() -> None:
    row = _row(secrets=seal_secrets(VAULT, [Secret("new-one"), Secret("old-one", NOW + HOUR)]))
    shown = opened(VAULT, row, NOW, new=[Secret("new-one")])
    assert shown is not None
    assert [one.text for one in shown.secrets] == ["new-one", None]
    assert "new-one" not in repr(shown)


def test_headers_are_sealed_as_a_json_object_and_none_as_nothing() -> None:
    sealed = seal_headers(VAULT, {"X-A": SECRET_HEADER, "X-B": OPEN_HEADER})
    assert sealed is not None
    assert orjson.loads(VAULT.decrypt(sealed)) == {"X-A": "1", "X-B": {"value": "2", "secret": False}}
    assert seal_headers(VAULT, {}) is None
