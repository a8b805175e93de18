"""What a subscription asks for about its endpoint, checked as far as that can be done without the endpoint."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from consumer_api.presentation import Opened
from infra.egress_rules import destination
from infra.tls import Unusable, make_context
from schemas.certificates import check_tls
from schemas.destination_auth import Auth, Tls, destination_clashes
from schemas.errors import InvalidInput, Problem
from schemas.formats import Format, HmacSignature, Signature, request_problems
from schemas.subscriptions import SubscriptionPatch

_NONE: Final = {"headers": "{}", "auth": "null", "tls": "null"}


def check_kept(url: str, wanted: SubscriptionPatch, opened: Opened | None, *, sealed: Sequence[str]) -> None:
    """Raises InvalidInput where a new URL has another origin than `url`, and credentials would go along unseen.

    Who may change a subscription may not know its credentials; elsewhere they could be read. So there they have to be
    given again, or taken away, in the same change. `sealed` are the fields that it has; of those that cannot be
    decrypted, `opened` None, nobody knows that they hold no secret.
    """
    if wanted.url is None or destination(wanted.url) == destination(url):
        return
    secret = {
        "headers": opened is None or any(one.secret for one in opened.headers.values()),
        "auth": True,
        "tls": opened is None or (opened.tls is not None and opened.tls.client_key is not None),
    }
    problems = [
        Problem(name, f"must be given again, or be {_NONE[name]}, since url leads to another origin")
        for name in sealed
        if secret[name] and name not in wanted.model_fields_set
    ]
    if problems:
        raise InvalidInput(problems)


async def check_certificates(tls: Tls | None) -> None:
    """Raises InvalidInput for certificates and keys that are not right, or that OpenSSL would not use."""
    if tls is not None:
        await asyncio.to_thread(_check, tls)


def _check(tls: Tls) -> None:
    # Blocks, and so does check_tls: both are done away from the event loop.
    check_tls(tls, now=datetime.now(UTC))
    made = make_context(tls)
    if isinstance(made, Unusable):
        raise InvalidInput.of("tls", f"must be usable as it is: {made.reason}")


def check_together(
    *,
    url: str,
    format: Format,  # noqa: A002 - the field's own name
    signature: Signature,
    handshake: bool,
    header_names: Sequence[str],
    auth: Auth | None,
    tls: Tls | None,
) -> None:
    """Raises InvalidInput for what of a whole subscription does not go together."""
    problems = request_problems(format=format, signature=signature, handshake=handshake, header_names=header_names)
    ours = [signature.header] if isinstance(signature, HmacSignature) else []
    problems += destination_clashes(url, [*header_names, *ours], auth, tls)
    if problems:
        raise InvalidInput(problems)
