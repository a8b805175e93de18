"""`/v1/subscriptions/{id}/secrets`, `/rotate-secret`, `/expire-secrets`: what signs, shown, replaced and ended."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NotRequired

from aiohttp import web
from typing_extensions import TypedDict

from consumer_api import audit
from consumer_api.answers import json_answer
from consumer_api.changing import locked, record, shown, subscription_key, tagged
from consumer_api.commands import SecretExpiry, SecretRotation
from consumer_api.context import STORE, VAULT
from consumer_api.errors import ErrorCode, conflict
from consumer_api.outcomes import done
from consumer_api.reading import read_json
from consumer_api.route import Route
from consumer_api.sealing import live_secrets, public_half, seal_secrets
from consumer_api.signing import check_number, left_without, missing, next_secrets, rotated
from consumer_api.subscription_views import SubscriptionView
from consumer_api.views import SecretId
from infra.crypto import Vault
from infra.store import subscriptions
from infra.store.subscriptions import SubscriptionRow
from schemas.errors import SecretUnreadable
from schemas.formats import Kind, read_signature
from schemas.ids import SECRET, SUBSCRIPTION, public_id
from schemas.scopes import Scope
from schemas.subscriptions import Secret, signing


class ToldSecret(TypedDict):
    """A secret in the clear; `version` is null where it signs in none of Standard Webhooks.

    One that does not sign now (`signs`) is kept for the signature that it fits.
    """

    id: SecretId | None
    version: str | None
    signs: bool
    secret: str
    public_key: NotRequired[str]
    expires_at: datetime | None


class ToldSecrets(TypedDict):
    """Those that have not expired, newest first."""

    data: list[ToldSecret]


def routes() -> list[Route]:
    one, changed = "/v1/subscriptions/{subscription_id}", (ErrorCode.CONFLICT, ErrorCode.PRECONDITION_FAILED)
    return [
        Route(
            method="GET",
            path=f"{one}/secrets",
            handler=show,
            scope=Scope.SECRETS_READ,
            answers={200: ToldSecrets},
            errors=(ErrorCode.CONFLICT,),
        ),
        Route(
            method="POST",
            path=f"{one}/rotate-secret",
            handler=rotate,
            scope=Scope.SUBSCRIPTIONS_WRITE,
            body=SecretRotation,
            body_optional=True,
            answers={200: SubscriptionView},
            errors=changed,
        ),
        Route(
            method="POST",
            path=f"{one}/expire-secrets",
            handler=expire,
            scope=Scope.SUBSCRIPTIONS_WRITE,
            body=SecretExpiry,
            body_optional=True,
            answers={200: SubscriptionView},
            errors=changed,
        ),
    ]


async def show(request: web.Request) -> web.Response:
    """Show the secrets in the clear, those that are kept and do not sign now among them. Who looked is recorded."""
    async with request.app[STORE].transaction() as conn:
        row = done(await subscriptions.get(conn, subscription_key(request)), "subscription")
        known = _readable(request.app[VAULT], row)
        target = public_id(SUBSCRIPTION, row.id)
        await audit.record(request, conn, "subscription.secrets_shown", target, tenant=row.tenant)
    signs = signing(known, read_signature(row.signature))
    return json_answer(
        ToldSecrets(data=[_told(one, signs=one in signs) for one in known]), headers={"Cache-Control": "no-store"}
    )


async def rotate(request: web.Request) -> web.Response:
    """Rotate the secret. The new one is shown here and never again, and signs at once; the old too for the grace."""
    wanted = await read_json(request, SecretRotation, optional=True)
    vault, now = request.app[VAULT], datetime.now(UTC)
    async with request.app[STORE].transaction() as conn:
        before = await locked(request, conn)
        signature = read_signature(before.signature)
        new = next_secrets(signature, wanted.secret, wanted.version)
        try:
            known = live_secrets(vault, before, now)
        except SecretUnreadable:  # what nobody can sign with is replaced
            known = []
        secrets = rotated(known, new, signature, now=now, grace=timedelta(seconds=wanted.grace_s))
        also = missing(signature, secrets)  # of another kind, where none could be decrypted
        new, secrets = [*new, *also], [*secrets, *also]
        check_number(secrets, signature)
        row = await subscriptions.save(conn, replace(before, secrets=seal_secrets(vault, secrets)))
        await record(request, conn, "secret_rotated", before, row)
    return json_answer(shown(request, row, new=new), headers=tagged(row))


async def expire(request: web.Request) -> web.Response:
    """End secrets now: all but the newest of each kind, or the one that is named, since it has become known, say.

    A request that is under way ends as it began.
    """
    wanted = await read_json(request, SecretExpiry, optional=True)
    vault = request.app[VAULT]
    async with request.app[STORE].transaction() as conn:
        before = row = await locked(request, conn)
        known = _readable(vault, row)
        kept = left_without(known, read_signature(row.signature), wanted.secret_id)
        if kept != known:
            row = await subscriptions.save(conn, replace(row, secrets=seal_secrets(vault, kept)))
            await record(request, conn, "secrets_expired", before, row)
    return json_answer(shown(request, row), headers=tagged(row))


def _readable(vault: Vault, row: SubscriptionRow) -> list[Secret]:
    try:
        return live_secrets(vault, row, datetime.now(UTC))
    except SecretUnreadable:
        raise conflict("its secrets cannot be decrypted with the configured keys; rotate them") from None


def _told(secret: Secret, *, signs: bool) -> ToldSecret:
    told: ToldSecret = {
        "id": None if secret.id is None else public_id(SECRET, secret.id),
        "version": None if secret.kind is Kind.TEXT else secret.kind.value,
        "signs": signs,
        "secret": secret.text,
        "expires_at": secret.expires_at,
    }
    if secret.kind is Kind.V1A:
        told["public_key"] = public_half(secret.text)
    return told
