"""A subscription's secrets and headers: encrypted for the store, and as much of them as may be shown."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from consumer_api.presentation import Opened
from infra.crypto import Vault
from infra.store.subscriptions import SubscriptionRow
from schemas.errors import SecretUnreadable
from schemas.subscription_headers import HeaderInput, decode_headers, encode_headers
from schemas.subscriptions import Secret, decode_secrets, encode_secrets

MAX_LIVE_SECRETS = 5  # each adds a signature to every request


def seal_secrets(vault: Vault, secrets: Sequence[Secret]) -> bytes:
    return vault.encrypt(encode_secrets(secrets))


def seal_headers(vault: Vault, headers: Mapping[str, HeaderInput]) -> bytes | None:
    """Encrypted JSON, None for no headers."""
    if not headers:
        return None
    return vault.encrypt(encode_headers({name: one.header() for name, one in headers.items()}))


def live_secrets(vault: Vault, row: SubscriptionRow, now: datetime) -> list[Secret]:
    """The secrets that sign now, newest first; none when no configured key decrypts them."""
    try:
        return [secret for secret in decode_secrets(vault.decrypt(row.secrets)) if secret.live(now)]
    except SecretUnreadable:
        return []


def rotated(live: Sequence[Secret], new: str, *, now: datetime, grace: timedelta) -> list[Secret]:
    """`new` in front, for good; the others until the grace is over, or until they were to end anyway."""
    end = now + grace
    others = [
        Secret(secret.text, end if secret.expires_at is None else min(secret.expires_at, end))
        for secret in live
        if secret.text != new
    ]
    return [Secret(new), *(secret for secret in others if secret.live(now))]


def opened(vault: Vault, row: SubscriptionRow, now: datetime) -> Opened | None:
    """What may be shown, None when no configured key decrypts the row."""
    try:
        secrets = decode_secrets(vault.decrypt(row.secrets))
        headers = {} if row.headers is None else decode_headers(vault.decrypt(row.headers))
    except SecretUnreadable:
        return None
    return Opened(headers, tuple(secret.expires_at for secret in secrets if secret.live(now)))
