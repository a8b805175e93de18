"""What a subscription asks for about its endpoint, checked as far as that can be done without the endpoint."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from infra.tls import Unusable, make_context
from schemas.certificates import check_tls
from schemas.destination_auth import Auth, Tls, destination_clashes
from schemas.errors import InvalidInput
from schemas.formats import Format, HmacSignature, Signature, request_problems


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
