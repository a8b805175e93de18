"""From a subscription, decrypted, to how its endpoint is written to."""

from collections.abc import Mapping, Sequence

from dispatcher.core.credentials import sent_secrets, static_headers
from dispatcher.core.echo import to_hide
from dispatcher.core.handshake import ORIGIN_HEADER
from dispatcher.core.request import HexHeader, Recipe
from schemas.destination_auth import Auth, auth_header
from schemas.formats import Format, HmacSignature, Signature, signing_key
from schemas.subscription_headers import Header
from schemas.subscriptions import Secret, signing


def recipe_of(
    *,
    secrets: Sequence[Secret],
    signature: Signature,
    format: Format,  # noqa: A002 - the field's own name
    headers: Mapping[str, Header],
    auth: Auth | None,
    origin: str | None,
) -> Recipe:
    """`origin` is how an endpoint that is asked to agree knows us, in every request; None for one that is not."""
    sent = {name: one.value for name, one in headers.items()}
    shown_back = [one.value for one in headers.values() if one.secret]  # by an endpoint that answers with what came
    if origin is not None:
        sent[ORIGIN_HEADER] = origin
    return Recipe(
        _with_auth(sent, auth),
        tuple((signing_key(one.text, signature), one.expires_at) for one in signing(secrets, signature)),
        format,
        HexHeader(signature.header, signature.prefix) if isinstance(signature, HmacSignature) else None,
        to_hide([*shown_back, *sent_secrets(auth)]),
    )


def _with_auth(headers: Mapping[str, str], auth: Auth | None) -> Mapping[str, str]:
    """The headers of every request. Where both name one, which the API refuses, it is there once, as `auth` has it."""
    if auth is None:
        return headers
    name = auth_header(auth).lower()
    return {given: value for given, value in headers.items() if given.lower() != name} | static_headers(auth)
