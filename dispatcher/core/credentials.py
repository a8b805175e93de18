"""How a request shows who it is from: the header of each kind of `auth`, and OAuth 2's request for a token.

Pure: texts in, texts out. A secret is never part of a reason.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote_plus, urlencode, urlsplit

import orjson

from schemas.deliveries import Answered
from schemas.destination_auth import ApiKeyAuth, Auth, BasicAuth, BearerAuth, OAuth2Auth

AUTHORIZATION: Final = "Authorization"
FORM: Final = "application/x-www-form-urlencoded"
MAX_ANSWER_BYTES: Final = 65_536  # of a token server
MAX_TOKEN_CHARS: Final = 16_384
MAX_LIFETIME_S: Final = 86_400.0
UNTOLD_LIFETIME_S: Final = 300.0  # expires_in is optional (RFC 6749 section 5.1); a 401 tells sooner
_LEEWAY_S: Final = 60.0
_LEEWAY_SHARE: Final = 0.1

_TOKEN: Final = re.compile(rf"[!-~]{{1,{MAX_TOKEN_CHARS}}}")
_ERROR_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")  # stricter than RFC 6749 section 5.2: it is shown to people
_SECONDS: Final = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Granted:
    """An access token, and for how many seconds it may be used from when it was asked for."""

    token: str
    usable_s: float

    def __repr__(self) -> str:
        return f"Granted(…, usable_s={self.usable_s})"


def static_headers(auth: Auth | None) -> dict[str, str]:
    """The header that is the same for every request; none for OAuth 2, whose tokens come and go."""
    match auth:
        case BasicAuth(username=username, password=password):
            pair = f"{username}:{password.get_secret_value()}".encode()
            return {AUTHORIZATION: f"Basic {base64.b64encode(pair).decode('ascii')}"}
        case BearerAuth(token=token):
            return bearer(token.get_secret_value())
        case ApiKeyAuth(header=header, value=value):
            return {header: value.get_secret_value()}
        case _:
            return {}


def sent_secrets(auth: Auth | None) -> list[str]:
    """What of it every request tells its endpoint, and an answer may say back."""
    password = [auth.password.get_secret_value()] if isinstance(auth, BasicAuth) else []
    return [*static_headers(auth).values(), *password]


def bearer(token: str) -> dict[str, str]:
    """The header that a token is sent in (RFC 6750 section 2.1)."""
    return {AUTHORIZATION: f"Bearer {token}"}


def token_request(client: OAuth2Auth) -> tuple[dict[str, str], bytes]:
    """Headers and form of the request for a token (RFC 6749 section 4.4.2), the client shown as section 2.3.1 has it:
    in HTTP Basic, id and secret form-encoded before they are joined; or in the form."""
    secret = client.client_secret.get_secret_value()
    headers = {"Accept": "application/json"}
    form = {"grant_type": "client_credentials"}
    if client.scope is not None:
        form["scope"] = client.scope
    if client.audience is not None:
        form["audience"] = client.audience
    if client.client_auth == "post":
        form |= {"client_id": client.client_id, "client_secret": secret}
    else:
        pair = f"{quote_plus(client.client_id)}:{quote_plus(secret)}".encode("ascii")
        headers[AUTHORIZATION] = f"Basic {base64.b64encode(pair).decode('ascii')}"
    return headers, urlencode(form).encode("ascii")


def token_server(client: OAuth2Auth) -> str:
    """What a reason calls it."""
    return f"the token server at {urlsplit(client.token_url).netloc}"


def read_grant(client: OAuth2Auth, answer: Answered) -> Granted | str:
    """The token in the answer of a token server (RFC 6749 section 5.1), or why there is none, for a person."""
    server = token_server(client)
    if answer.status != HTTPStatus.OK:
        code = _error_code(client, answer.body)
        return f"{server} answered {answer.status}{f': {code}' if code else ''}"
    if len(answer.body) >= MAX_ANSWER_BYTES:
        return f"{server} answered with {MAX_ANSWER_BYTES} bytes or more"
    grant = _object(answer.body)
    if grant is None:
        return f"{server} answered 200 with what is no JSON object"
    token, kind = grant.get("access_token"), grant.get("token_type")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        return f"{server} answered 200 without an access_token that a header can hold"
    if not isinstance(kind, str) or kind.lower() != "bearer":
        return f"{server} answered 200 with a token whose token_type is not Bearer"
    lifetime_s = _lifetime_s(grant.get("expires_in"))
    if lifetime_s is None:
        return f"{server} answered 200 with an expires_in that is no number of seconds"
    return Granted(token, usable_s(lifetime_s))


def usable_s(lifetime_s: float) -> float:
    """How long a token that lives so long is used: a tenth less, or a minute; what is on its way should be on time."""
    return lifetime_s - min(_LEEWAY_S, _LEEWAY_SHARE * lifetime_s)


def _lifetime_s(said: object) -> float | None:
    """Seconds; None for what are none. Some servers write the number as a string."""
    if said is None:
        return UNTOLD_LIFETIME_S
    if isinstance(said, str) and _SECONDS.fullmatch(said):
        said = int(said)
    if isinstance(said, bool) or not isinstance(said, int | float) or said < 0:
        return None
    return min(float(said), MAX_LIFETIME_S)


def _error_code(client: OAuth2Auth, body: bytes) -> str | None:
    """The error code of RFC 6749 section 5.2. Nothing else of what a token server says is repeated."""
    said = _object(body) or {}
    code = said.get("error")
    if not isinstance(code, str) or not _ERROR_CODE.fullmatch(code):
        return None
    return None if client.client_secret.get_secret_value() in code else code


def _object(body: bytes) -> Mapping[str, Any] | None:
    try:
        value = orjson.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
