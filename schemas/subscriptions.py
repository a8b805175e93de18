"""What a subscription is, and what a caller may ask of it. Part of the server only: it needs pydantic."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Self
from uuid import UUID

import msgspec
from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Strict,
    Tag,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from schemas.destination_auth import AnyAuth, Tls
from schemas.errors import InvalidInput, SecretUnreadable
from schemas.events import DEFAULT_TENANT
from schemas.fields import MAX_TYPE_BYTES, TENANT_SCHEMA, WORD, description_fault, tenant_fault
from schemas.filters import read_filter
from schemas.formats import (
    DEFAULT_SIGNATURE,
    AnySignature,
    Format,
    Kind,
    Scheme,
    Signature,
    StandardSignature,
    secret_fault,
    secret_kind,
)
from schemas.inputs import Input, Tags, rule
from schemas.subscription_headers import Headers
from schemas.urls import URL_SCHEMA, url_fault

MAX_DELAY_S: Final = 86_400
MAX_ATTEMPTS: Final = 50
MAX_MAX_AGE_S: Final = 30 * 86_400
MAX_PATTERNS: Final = 100
MIN_RATE_PER_S: Final = 0.01
MAX_RATE_PER_S: Final = 10_000
MAX_BURST: Final = 10_000

_PATTERN: Final = re.compile(rf"(?:\*|#|{WORD})(?:\.(?:\*|#|{WORD}))*")
_PATTERN_SCHEMA: Final = {"pattern": f"^{_PATTERN.pattern}$", "maxLength": MAX_TYPE_BYTES}
_DESCRIPTION_SCHEMA: Final = {"maxLength": 1024}


class State(StrEnum):
    """Enabled subscriptions are delivered to, paused ones keep their backlog, disabled ones have none."""

    ENABLED = "enabled"
    PAUSED = "paused"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A signing secret; it signs until `expires_at`, or for good.

    Of the scheme standard, `whsec_…` or `whsk_…`; of hmac, any text. It is kept while its subscription is signed by
    another scheme. `id` names it without telling it; None where an earlier release stored it.
    """

    text: str
    expires_at: datetime | None = None
    scheme: Scheme = Scheme.STANDARD
    id: UUID | None = field(default=None, compare=False)

    @property
    def kind(self) -> Kind:
        """What it signs."""
        return secret_kind(self.text, self.scheme)

    def __repr__(self) -> str:
        return f"Secret(…, expires_at={self.expires_at!r})"

    def live(self, now: datetime) -> bool:
        return self.expires_at is None or now < self.expires_at


class _WireSecret(msgspec.Struct, omit_defaults=True):
    secret: str
    expires_at: Annotated[datetime, msgspec.Meta(tz=True)] | None
    scheme: Scheme = Scheme.STANDARD
    id: UUID | None = None


_secrets_decoder = msgspec.json.Decoder(list[_WireSecret])


def encode_secrets(secrets: Sequence[Secret]) -> bytes:
    """The JSON that is encrypted and stored: of each its secret, expires_at and id, and its scheme where it is hmac."""
    return msgspec.json.encode(
        [_WireSecret(secret.text, secret.expires_at, secret.scheme, secret.id) for secret in secrets]
    )


def decode_secrets(data: bytes) -> list[Secret]:
    """What `encode_secrets` wrote. Raises SecretUnreadable, without showing it, when it is anything else."""
    try:
        return [Secret(wire.secret, wire.expires_at, wire.scheme, wire.id) for wire in _secrets_decoder.decode(data)]
    except ValueError:  # msgspec.DecodeError and bad UTF-8; no cause, which could show a part of it
        raise SecretUnreadable("the stored secrets are not the list that they should be") from None


def signing(secrets: Sequence[Secret], signature: Signature) -> list[Secret]:
    """Those of the secrets that sign such a subscription's requests, in order.

    Before there were versions to choose, every secret signed by its own. So of the other version those sign that are
    to end, until then; and all of them where the versions asked for have none for good.
    """
    fitting = [secret for secret in secrets if secret.kind in signature.kinds]
    if not isinstance(signature, StandardSignature):
        return fitting
    lasts = any(secret.expires_at is None for secret in fitting)
    return [
        secret
        for secret in secrets
        if secret.scheme is Scheme.STANDARD
        and (secret.kind in signature.kinds or secret.expires_at is not None or not lasts)
    ]


def pattern_fault(text: str) -> str | None:
    """A pattern for event types, by AMQP's topic rules.

    Hookhare's own events (`schemas.operational`) are asked for by their first word: `hookhare.#` reaches them, `#` does
    not.
    """
    if len(text) <= MAX_TYPE_BYTES and _PATTERN.fullmatch(text):
        return None
    return (
        "must be words joined by dots, each '*' (any one word), '#' (any number of words), "
        f"or letters, digits, '_', '-', ':' or '/'; at most {MAX_TYPE_BYTES} bytes"
    )


def _tenant(text: str) -> str:
    rule(tenant_fault(text))
    return text


def _url(text: str) -> str:
    rule(url_fault(text))
    return text


def _pattern(text: str) -> str:
    rule(pattern_fault(text))
    return text


def _description(text: str) -> str:
    rule(description_fault(text))
    return text


def _filter(given: dict[str, Any]) -> dict[str, Any]:
    try:
        read_filter(given)
    except InvalidInput as error:
        rule(error.problems[0].message)
    return given


def _unique(values: tuple[object, ...]) -> tuple[object, ...]:
    rule("must not name anything twice" if len(set(values)) != len(values) else None)
    return values


Tenant = Annotated[str, AfterValidator(_tenant), Field(json_schema_extra=TENANT_SCHEMA)]
Url = Annotated[str, AfterValidator(_url), Field(json_schema_extra=URL_SCHEMA)]
EventTypes = Annotated[
    tuple[Annotated[str, AfterValidator(_pattern), Field(json_schema_extra=_PATTERN_SCHEMA)], ...],
    Field(min_length=1, max_length=MAX_PATTERNS, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_unique),
]
Description = Annotated[str, AfterValidator(_description), Field(json_schema_extra=_DESCRIPTION_SCHEMA)]
FilterInput = Annotated[dict[str, Any], AfterValidator(_filter)]  # of schemas.filters, kept as it came
MAX_TIMEOUT_S: Final = 60
TimeoutSeconds = Annotated[int, Strict(), Field(ge=1, le=MAX_TIMEOUT_S)]
Ordered = Annotated[bool, Strict()]
Handshake = Annotated[bool, Strict()]
DelaySeconds = Annotated[float, Strict(), Field(ge=0, le=MAX_DELAY_S, allow_inf_nan=False)]
MaxAgeSeconds = Annotated[float, Strict(), Field(ge=1, le=MAX_MAX_AGE_S, allow_inf_nan=False)]
FinalStatuses = Annotated[
    tuple[Annotated[int, Strict(), Field(ge=300, le=599)], ...], Field(max_length=300), AfterValidator(_unique)
]


class _Ends(Input):
    """What ends a delivery before its attempts are used up: an answer's status, and an age (null: none)."""

    final_statuses: FinalStatuses = ()
    max_age_s: MaxAgeSeconds | None = None


class ListPolicy(_Ends):
    """Retry after each of these delays in turn: one more attempt than there are delays."""

    delays_s: Annotated[tuple[DelaySeconds, ...], Field(max_length=MAX_ATTEMPTS - 1)]


class ExponentialPolicy(_Ends):
    """Up to `max_attempts` in all. Delays begin at `initial_delay_s` and grow by `multiplier` up to `max_delay_s`."""

    max_attempts: Annotated[int, Strict(), Field(ge=1, le=MAX_ATTEMPTS)]
    initial_delay_s: DelaySeconds
    multiplier: Annotated[float, Strict(), Field(ge=1, le=100, allow_inf_nan=False)]
    max_delay_s: DelaySeconds

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        rule("max_delay_s must not be less than initial_delay_s" if self.max_delay_s < self.initial_delay_s else None)
        return self


Rate = Annotated[float, Strict(), Field(ge=MIN_RATE_PER_S, le=MAX_RATE_PER_S, allow_inf_nan=False)]


class RateLimitInput(Input):
    """At most so many requests a second, and up to `burst` of them at once after a rest."""

    requests_per_s: Rate
    burst: Annotated[int, Strict(), Field(ge=1, le=MAX_BURST)] = 1


_EXPONENTIAL_FIELDS: Final = ("max_attempts", "initial_delay_s", "multiplier", "max_delay_s")


def _shape(value: object) -> str | None:
    """Which policy it is by the fields that it has; None for an object that has those of neither."""
    if isinstance(value, ListPolicy) or (isinstance(value, Mapping) and "delays_s" in value):
        return Tags.LIST
    # What is no object at all is told so by the model.
    fits = not isinstance(value, Mapping) or all(name in value for name in _EXPONENTIAL_FIELDS)
    return Tags.EXPONENTIAL if fits else None


RetryPolicy = ListPolicy | ExponentialPolicy
_AnyPolicy = Annotated[
    Annotated[ListPolicy, Tag(Tags.LIST)] | Annotated[ExponentialPolicy, Tag(Tags.EXPONENTIAL)],
    Discriminator(
        _shape,
        custom_error_type="rule",
        custom_error_message="must have delays_s, or max_attempts, initial_delay_s, multiplier and max_delay_s",
    ),
]
_policy_reader: TypeAdapter[RetryPolicy] = TypeAdapter(_AnyPolicy)

# 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h: ten attempts within four days.
DEFAULT_POLICY: Final = ListPolicy(delays_s=(5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400))


def write_policy(policy: RetryPolicy) -> dict[str, Any]:
    """A policy as it is stored. What is null is left out: a release that does not know the field yet can read it."""
    return policy.model_dump(mode="json", exclude_none=True)


def read_policy(data: object) -> RetryPolicy:
    """A policy as `write_policy` wrote it."""
    return _policy_reader.validate_python(data)


class SubscriptionCreate(Input):
    """What a caller sends to create a subscription. The secrets that its signature needs and are not given are made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"tenant": "acme", "url": "https://shop.example/webhooks", "event_types": ["order.*"]}]
        }
    )

    tenant: Tenant = DEFAULT_TENANT
    url: Url
    event_types: EventTypes
    filter: FilterInput | None = None
    description: Description = ""
    headers: Headers = Field(default_factory=dict, repr=False)  # values are often credentials
    retry_policy: _AnyPolicy = DEFAULT_POLICY
    timeout_s: TimeoutSeconds = 15
    rate_limit: RateLimitInput | None = None
    ordered: Ordered = False
    format: Format = Format.STANDARD
    signature: AnySignature = DEFAULT_SIGNATURE
    handshake: Handshake = False
    secret: SecretStr | None = None
    auth: AnyAuth | None = None
    tls: Tls | None = None

    @field_validator("secret")
    @classmethod
    def _signs(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        signature = info.data.get("signature")  # none where it is at fault itself
        if secret is not None and signature is not None:
            rule(secret_fault(secret.get_secret_value(), signature))
        return secret


def _no_null(value: object) -> object:
    rule("must not be null; leave it out to keep what it is" if value is None else None)
    return value


_NEVER_NULL: Final = (
    *("url", "event_types", "description", "headers", "retry_policy", "timeout_s", "ordered", "state"),
    *("format", "signature", "handshake"),
)


def _documented_patch(schema: dict[str, Any]) -> None:
    """What pydantic cannot know: which fields may not be null."""
    for name in _NEVER_NULL:
        field = schema["properties"][name]
        del field["default"]
        choices = [one for one in field.pop("anyOf") if one != {"type": "null"}]
        field |= choices[0]
    schema["examples"] = [{"description": "Orders, for the shop", "timeout_s": 10}]


class SubscriptionPatch(Input):
    """What a caller sends to change a subscription: only what is to change. A secret is rotated, not patched."""

    model_config = ConfigDict(json_schema_extra=_documented_patch)

    url: Url | None = None
    event_types: EventTypes | None = None
    filter: FilterInput | None = None  # null takes it away
    description: Description | None = None
    headers: Headers | None = Field(None, repr=False)
    retry_policy: _AnyPolicy | None = None
    timeout_s: TimeoutSeconds | None = None
    rate_limit: RateLimitInput | None = None  # null takes it away
    ordered: Ordered | None = None
    format: Format | None = None
    signature: AnySignature | None = None
    handshake: Handshake | None = None
    state: State | None = None
    auth: AnyAuth | None = None  # null takes it away
    tls: Tls | None = None  # as well

    @field_validator(*_NEVER_NULL, mode="before")
    @classmethod
    def _given(cls, value: object) -> object:
        return _no_null(value)

    def changes(self) -> dict[str, object]:
        """The fields that were given, with their values."""
        return {name: getattr(self, name) for name in self.model_fields_set}
