"""A subscription's secrets through its life: which are made, which sign, and which replace which.

A subscription has one secret for good of each kind that its signature asks for, and those before it until their grace
is over. A change of its signature makes what is missing then. What no longer signs is kept as it is, and signs again
when the signature that it fits comes back; so no change, and no way back, leaves a subscription unable to sign.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, assert_never
from uuid import UUID

from pydantic import SecretStr

from consumer_api.errors import conflict, not_found
from schemas.errors import InvalidInput
from schemas.formats import Kind, Scheme, Signature, StandardSignature, Version, secret_fault
from schemas.signatures import format_keypair, format_secret
from schemas.subscriptions import Secret, signing

MAX_LIVE_SECRETS: Final = 5  # each adds a signature to every request
_RANDOM_BYTES: Final = 32


def made(kind: Kind) -> Secret:
    """A new random secret of that kind."""
    match kind:
        case Kind.V1:
            return Secret(format_secret(secrets.token_bytes(_RANDOM_BYTES)))
        case Kind.V1A:
            return Secret(format_keypair(secrets.token_bytes(_RANDOM_BYTES)))
        case Kind.TEXT:
            return Secret(secrets.token_urlsafe(_RANDOM_BYTES), scheme=Scheme.HMAC)
        case _:
            assert_never(kind)


def first_secrets(signature: Signature, given: SecretStr | None) -> list[Secret]:
    """Those of a new subscription: the one that was given, and of each other kind that is asked for a new one.

    Raises InvalidInput when the given one does not fit.
    """
    known = [] if given is None else [_fitting(given, signature)]
    return sorted([*known, *missing(signature, known)], key=lambda secret: signature.kinds.index(secret.kind))


def missing(signature: Signature, known: Sequence[Secret]) -> list[Secret]:
    """New secrets of the kinds that the signature asks for, and of which there is none for good."""
    there = {secret.kind for secret in known if secret.expires_at is None}
    return [made(kind) for kind in signature.kinds if kind not in there]


def next_secrets(signature: Signature, given: SecretStr | None, version: Version | None) -> list[Secret]:
    """Those that a rotation brings: the given one, or a new one of that version, or of each kind that signs.

    Raises InvalidInput when they do not fit the signature.
    """
    if version is not None and not (isinstance(signature, StandardSignature) and version in signature.versions):
        raise InvalidInput.of("version", f"must be one that signs: {', '.join(signature.kinds)}")
    if given is None:
        return [made(kind) for kind in ([Kind(version.value)] if version else signature.kinds)]
    secret = _fitting(given, signature)
    if version is not None and secret.kind != version.value:
        raise InvalidInput.of("secret", f"signs {secret.kind.value}, and not the version that is to be rotated")
    return [secret]


def rotated(
    known: Sequence[Secret], new: Sequence[Secret], signature: Signature, *, now: datetime, grace: timedelta
) -> list[Secret]:
    """The new ones in front, for good; what they replace until the grace is over, or until it was to end anyway.

    They replace those of their kinds, and what signed for want of one that the signature asks for. Of the others
    nothing changes; what has expired is forgotten.
    """
    end, kinds = now + grace, {secret.kind for secret in new}
    unfit = [secret for secret in signing(known, signature) if secret.kind not in signature.kinds]
    texts = {secret.text for secret in new}
    others = [
        replace(secret, expires_at=_sooner(secret.expires_at, end))
        if secret.kind in kinds or secret in unfit
        else secret
        for secret in known
        if secret.text not in texts or secret.kind not in kinds
    ]
    return [*new, *(secret for secret in others if secret.live(now))]


def left_without(known: Sequence[Secret], signature: Signature, ended: UUID | None) -> list[Secret]:
    """What is left when the one of that id ends now; without an id, when all that are to end do.

    Raises 404 where there is none, and a conflict where none that signs would be left, or it is the one for good.
    """
    if ended is None:
        kept = [secret for secret in known if secret.expires_at is None]
    else:
        named = next((secret for secret in known if secret.id == ended), None)
        if named is None:
            raise not_found("secret")
        if named.expires_at is None and named in signing(known, signature):
            raise conflict("it is the one that signs; rotate it with a grace_s of 0, which ends it at once")
        kept = [secret for secret in known if secret is not named]
    if not signing(kept, signature):
        raise conflict("no other secret would sign; rotate it with a grace_s of 0, which replaces it")
    return kept


def check_number(known: Sequence[Secret], signature: Signature) -> None:
    """Raise a conflict when more would sign than may."""
    if len(signing(known, signature)) > MAX_LIVE_SECRETS:
        raise conflict(
            f"{MAX_LIVE_SECRETS} secrets at most sign at once; wait for one to expire, or rotate with a grace_s of 0"
        )


def _sooner(expires_at: datetime | None, end: datetime) -> datetime:
    return end if expires_at is None else min(expires_at, end)


def _fitting(given: SecretStr, signature: Signature) -> Secret:
    text = given.get_secret_value()
    if fault := secret_fault(text, signature):
        raise InvalidInput.of("secret", fault)
    return Secret(text, scheme=signature.scheme)
