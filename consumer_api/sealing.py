"""A subscription's secrets, headers and credentials: encrypted for the store, and as much of them as may be shown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import orjson
from uuid_utils.compat import uuid7

from consumer_api.presentation import Opened, ShownSecret
from infra.crypto import Vault
from infra.store.subscriptions import SubscriptionRow
from schemas.destination_auth import Auth, Tls, read_auth, read_tls, write_auth, write_tls
from schemas.errors import SecretUnreadable
from schemas.formats import Kind, read_signature
from schemas.signatures import Ed25519Key, parse_secret, public_key
from schemas.subscription_headers import HeaderInput, decode_headers, encode_headers
from schemas.subscriptions import Secret, decode_secrets, encode_secrets, signing


def seal_secrets(vault: Vault, secrets: Sequence[Secret]) -> bytes:
    """Encrypted JSON. Those that have no id yet get one."""
    return vault.encrypt(encode_secrets([secret if secret.id else replace(secret, id=uuid7()) for secret in secrets]))


def seal_headers(vault: Vault, headers: Mapping[str, HeaderInput]) -> bytes | None:
    """Encrypted JSON, None for no headers."""
    if not headers:
        return None
    return vault.encrypt(encode_headers({name: one.header() for name, one in headers.items()}))


def seal_auth(vault: Vault, auth: Auth | None) -> bytes | None:
    return None if auth is None else vault.encrypt(orjson.dumps(write_auth(auth)))


def seal_tls(vault: Vault, tls: Tls | None) -> bytes | None:
    return None if tls is None else vault.encrypt(orjson.dumps(write_tls(tls)))


def live_secrets(vault: Vault, row: SubscriptionRow, now: datetime) -> list[Secret]:
    """The secrets that have not expired, newest first, those that do not sign now among them.

    Raises SecretUnreadable when no configured key decrypts them.
    """
    return [secret for secret in decode_secrets(vault.decrypt(row.secrets)) if secret.live(now)]


def opened(vault: Vault, row: SubscriptionRow, now: datetime, *, new: Sequence[Secret] = ()) -> Opened | None:
    """What may be shown, None when no configured key decrypts the row. The `new` secrets are shown as they are."""
    try:
        live = live_secrets(vault, row, now)
        headers = {} if row.headers is None else decode_headers(vault.decrypt(row.headers))
        auth = None if row.auth is None else read_auth(vault.decrypt(row.auth))
        tls = None if row.tls is None else read_tls(vault.decrypt(row.tls))
    except SecretUnreadable:
        return None
    texts = {secret.text for secret in new}
    signs = signing(live, read_signature(row.signature))
    return Opened(headers, tuple(_shown(secret, secret.text in texts) for secret in signs), auth, tls)


def _shown(secret: Secret, is_new: bool) -> ShownSecret:
    return ShownSecret(
        id=secret.id,
        version=None if secret.kind is Kind.TEXT else secret.kind.value,
        expires_at=secret.expires_at,
        public_key=public_half(secret.text) if secret.kind is Kind.V1A else None,
        text=secret.text if is_new else None,
    )


def public_half(secret: str) -> str:
    """The public key of a `whsk_…` secret."""
    key = parse_secret(secret)
    assert isinstance(key, Ed25519Key)
    return public_key(key)
