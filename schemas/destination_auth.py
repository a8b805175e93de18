"""How an endpoint knows that a request is its subscription's (`auth`), and how TLS with it is made (`tls`).

Both are stored encrypted, as JSON, and never shown again but for what is no secret in them. What a certificate's text
says is read in `schemas/certificates.py`. Part of the server only: it needs pydantic.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from schemas.errors import Problem, SecretUnreadable
from schemas.headers import header_name_fault
from schemas.inputs import Input, Tags, rule
from schemas.subscription_headers import REDACTED
from schemas.urls import url_fault

AUTHORIZATION: Final = "authorization"

MAX_USERNAME_CHARS: Final = 256
MAX_PASSWORD_CHARS: Final = 1024
MAX_TOKEN_CHARS: Final = 8192
MAX_CLIENT_ID_CHARS: Final = 256
MAX_CLIENT_SECRET_CHARS: Final = 2048
MAX_SCOPE_CHARS: Final = 1024
MAX_AUDIENCE_CHARS: Final = 1024
MAX_CERTIFICATE_CHARS: Final = 16_384
MAX_KEY_CHARS: Final = 8192
MAX_CA_CHARS: Final = 32_768

_NO_CONTROL: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
_USER: Final = re.compile(r"[^:\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_VISIBLE: Final = re.compile(r"[!-~]+")
_PRINTABLE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+(?: [!#-\[\]-~]+)*")
_PEM: Final = re.compile(r"[\t\n\r -~]+")


def _of(form: re.Pattern[str], what: str, most_chars: int) -> AfterValidator:
    """A text or a secret of that form. What is wrong is said without it."""

    def check(value: str | SecretStr) -> str | SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        fits = len(text) <= most_chars and form.fullmatch(text)
        rule(None if fits else f"must be {what}, at most {most_chars} characters")
        # Sent back as it was shown, it would take the secret's place.
        rule(f"must be the value itself: {REDACTED} is shown in its place" if text == REDACTED else None)
        return value

    return AfterValidator(check)


def _header_name(name: str) -> str:
    rule(header_name_fault(name))
    return name


def _token_url(text: str) -> str:
    rule(url_fault(text))
    return text


class BasicAuth(Input):
    """HTTP Basic: user name and password in UTF-8, without control characters (RFC 7617 sections 2 and 2.1)."""

    type: Literal["basic"]
    username: Annotated[str, _of(_USER, "text without a colon or control characters", MAX_USERNAME_CHARS)]
    password: Annotated[SecretStr, _of(_NO_CONTROL, "text without control characters", MAX_PASSWORD_CHARS)]


class BearerAuth(Input):
    """A token in `Authorization: Bearer …` (RFC 6750)."""

    type: Literal["bearer"]
    token: Annotated[SecretStr, _of(_VISIBLE, "printable ASCII without spaces", MAX_TOKEN_CHARS)]


class ApiKeyAuth(Input):
    """A key in a header of that name."""

    type: Literal["api_key"]
    header: Annotated[str, AfterValidator(_header_name)]
    value: Annotated[SecretStr, _of(_PRINTABLE, "printable ASCII with no space at either end", MAX_TOKEN_CHARS)]


class OAuth2Auth(Input):
    """OAuth 2 client credentials (RFC 6749 section 4.4): a token from `token_url`, sent as a bearer token.

    `client_auth` says how the client shows itself there (section 2.3.1). `audience` is what many servers ask for beyond
    the RFC. Equal ones are one client: they share their tokens.
    """

    type: Literal["oauth2"]
    token_url: Annotated[str, AfterValidator(_token_url)]
    client_id: Annotated[str, _of(_PRINTABLE, "printable ASCII with no space at either end", MAX_CLIENT_ID_CHARS)]
    client_secret: Annotated[
        SecretStr, _of(_PRINTABLE, "printable ASCII with no space at either end", MAX_CLIENT_SECRET_CHARS)
    ]
    client_auth: Literal["basic", "post"] = "basic"
    scope: Annotated[str, _of(_SCOPE, "words of printable ASCII joined by single spaces", MAX_SCOPE_CHARS)] | None = (
        None
    )
    audience: Annotated[str, _of(_VISIBLE, "printable ASCII without spaces", MAX_AUDIENCE_CHARS)] | None = None


_PEM_CERTIFICATES: Final = "certificates in PEM form (-----BEGIN CERTIFICATE-----)"


class Tls(Input):
    """The certificate that is shown to an endpoint, and the authorities that the endpoint's own may come from.

    `client_certificate` is a chain, its own certificate first. `ca` takes the place of the system's authorities.
    """

    client_certificate: Annotated[str, _of(_PEM, _PEM_CERTIFICATES, MAX_CERTIFICATE_CHARS)] | None = Field(
        None, repr=False
    )
    client_key: (
        Annotated[SecretStr, _of(_PEM, "a private key in PEM form (-----BEGIN PRIVATE KEY-----)", MAX_KEY_CHARS)] | None
    ) = None
    ca: Annotated[str, _of(_PEM, _PEM_CERTIFICATES, MAX_CA_CHARS)] | None = Field(None, repr=False)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        whole = (self.client_certificate is None) == (self.client_key is None)
        rule(None if whole else "must have client_certificate and client_key together, or neither")
        empty = self.client_certificate is None and self.ca is None
        rule("must have client_certificate and client_key, or ca, or all three" if empty else None)
        return self


Auth = BasicAuth | BearerAuth | ApiKeyAuth | OAuth2Auth

_TAGS: Final = {"basic": Tags.BASIC, "bearer": Tags.BEARER, "api_key": Tags.API_KEY, "oauth2": Tags.OAUTH2}


def _kind(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return _TAGS.get(kind) if isinstance(kind, str) else None


AnyAuth = Annotated[
    Annotated[BasicAuth, Tag(Tags.BASIC)]
    | Annotated[BearerAuth, Tag(Tags.BEARER)]
    | Annotated[ApiKeyAuth, Tag(Tags.API_KEY)]
    | Annotated[OAuth2Auth, Tag(Tags.OAUTH2)],
    Discriminator(
        _kind,
        custom_error_type="rule",
        custom_error_message="must be null, or an object with a type: basic, bearer, api_key or oauth2",
    ),
]
_auth_reader: TypeAdapter[Auth] = TypeAdapter(AnyAuth)


def write_auth(auth: Auth) -> dict[str, str]:
    """The object that is encrypted and stored, secrets in clear."""
    return _fields(auth, None)


def write_tls(tls: Tls) -> dict[str, str]:
    """The object that is encrypted and stored, the key in clear."""
    return _fields(tls, None)


def read_auth(data: bytes) -> Auth:
    """What `write_auth` wrote, as JSON. Raises SecretUnreadable, without showing it, when it is anything else."""
    try:
        return _auth_reader.validate_json(data)
    except ValidationError:  # no cause: pydantic keeps the values in it
        raise SecretUnreadable("the stored authentication is not the object that it should be") from None


def read_tls(data: bytes) -> Tls:
    """What `write_tls` wrote, as JSON. Raises SecretUnreadable, without showing it, when it is anything else."""
    try:
        return Tls.model_validate_json(data)
    except ValidationError:
        raise SecretUnreadable("the stored TLS settings are not the object that they should be") from None


def shown_auth(auth: Auth) -> dict[str, str]:
    """What may be shown: everything but the secrets, which are named."""
    return _fields(auth, REDACTED)


def auth_header(auth: Auth) -> str:
    """The name of the header that it is sent in."""
    return auth.header if isinstance(auth, ApiKeyAuth) else AUTHORIZATION


def destination_clashes(url: str, headers: Iterable[str], auth: Auth | None, tls: Tls | None) -> list[Problem]:
    """What of a whole subscription does not go together: `headers` are the names of those
    that are set for every request by others than `auth`."""
    problems = []
    if auth is not None and auth_header(auth).lower() in {name.lower() for name in headers}:
        message = f"is sent in the header {auth_header(auth)}, which headers or the signature set too"
        problems.append(Problem("auth", message))
    if tls is not None and not url.lower().startswith("https://"):
        problems.append(Problem("tls", "must go with a url that begins with https://"))
    return problems


def _fields(model: BaseModel, secret: str | None) -> dict[str, str]:
    """The fields that are set, each secret as it is, or `secret` in its place."""
    fields: dict[str, Any] = {name: getattr(model, name) for name in type(model).model_fields}
    return {
        name: (secret or value.get_secret_value()) if isinstance(value, SecretStr) else value
        for name, value in fields.items()
        if value is not None
    }
