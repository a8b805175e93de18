"""For receivers of webhooks: is this request really from the dispatcher that shares my secret?"""

from collections.abc import Mapping
from datetime import UTC, datetime

from schemas.signatures import TOLERANCE_S, parse_public_key, parse_secret, verify


def verify_webhook(
    secret: str,
    *,
    headers: Mapping[str, str],
    body: bytes,
    now: datetime | None = None,
    tolerance_s: float = TOLERANCE_S,
) -> None:
    """Return if `body`, the bytes as they came, was signed with `secret` (`whsec_…`, or the public `whpk_…`) just now.

    Raises InvalidSignature otherwise: answer 400 then, and do nothing else. `now` is the present unless given. Keep the
    `webhook-id` header of what you have handled: an event may be sent twice, always under the same one.

    `whpk_` keys need the package `cryptography`.
    """
    key = parse_public_key(secret, field="secret") if secret.startswith("whpk_") else parse_secret(secret)
    verify(key, headers=headers, body=body, now=now or datetime.now(UTC), tolerance_s=tolerance_s)
