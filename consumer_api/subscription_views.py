"""What the API answers of a subscription."""

from datetime import datetime
from typing import Annotated, Literal, NotRequired

from pydantic import Field, JsonValue
from typing_extensions import TypedDict

from consumer_api.views import EndpointUrl, SecretId, SubscriptionId, Tenant
from schemas.formats import Format, Scheme, Version
from schemas.health import Health
from schemas.signatures import Algorithm
from schemas.subscriptions import State


class BreakerView(TypedDict):
    """An open breaker sends nothing until `rests_until`."""

    state: Literal["closed", "open"]
    rests_until: datetime | None


class StreakView(TypedDict):
    """The failures since the last success."""

    failures: int
    failing_since: datetime | None


class SecretView(TypedDict):
    """A secret that signs. Its text is in `secret` in the one answer that makes it.

    `id` names it, to end it; null for one of an earlier release, until its subscription's secrets are written again.
    """

    id: SecretId | None
    version: str | None
    expires_at: datetime | None
    public_key: NotRequired[str]
    secret: NotRequired[str]


class PlainHeaderView(TypedDict):
    """A header whose owner says that it is no secret."""

    value: str
    secret: Literal[False]


class BasicAuthView(TypedDict):
    type: Literal["basic"]
    username: str
    password: str


class BearerAuthView(TypedDict):
    type: Literal["bearer"]
    token: str


class ApiKeyAuthView(TypedDict):
    type: Literal["api_key"]
    header: str
    value: str


class OAuth2AuthView(TypedDict):
    type: Literal["oauth2"]
    token_url: str
    client_id: str
    client_secret: str
    client_auth: Literal["basic", "post"]
    scope: NotRequired[str]
    audience: NotRequired[str]


AuthView = BasicAuthView | BearerAuthView | ApiKeyAuthView | OAuth2AuthView


class CertificateView(TypedDict):
    """`sha256` is its fingerprint, over the DER form, in hexadecimal."""

    subject: str
    not_after: datetime
    sha256: str


class TlsView(TypedDict):
    client_certificate: list[CertificateView] | None
    client_key: str | None
    ca: list[CertificateView] | None


class ListPolicyView(TypedDict):
    """One more attempt than there are delays."""

    delays_s: list[float]
    final_statuses: list[int]
    max_age_s: float | None


class ExponentialPolicyView(TypedDict):
    """Delays begin at `initial_delay_s` and grow by `multiplier` up to `max_delay_s`."""

    max_attempts: int
    initial_delay_s: float
    multiplier: float
    max_delay_s: float
    final_statuses: list[int]
    max_age_s: float | None


class RateLimitView(TypedDict):
    requests_per_s: float
    burst: int | None


class StandardSignatureView(TypedDict):
    scheme: Literal[Scheme.STANDARD]
    versions: list[Version]


class HmacSignatureView(TypedDict):
    scheme: Literal[Scheme.HMAC]
    algorithm: Algorithm
    header: str
    prefix: str


class HandshakeView(TypedDict):
    asked: bool
    validated_at: datetime | None
    allowed_per_min: int | None


class SubscriptionView(TypedDict):
    """A subscription. `headers`, `secrets`, `auth` and `tls` are null where no configured key decrypts them."""

    id: SubscriptionId
    tenant: Tenant
    url: EndpointUrl
    event_types: list[str]
    filter: dict[str, JsonValue] | None
    description: str
    state: State
    state_reason: str | None
    mode: Literal["open", "held"]
    breaker: BreakerView
    streak: StreakView
    health: Annotated[Health, Field(description="by breaker and streak")]
    headers: dict[str, Literal["[redacted]"] | PlainHeaderView] | None
    secrets: list[SecretView] | None
    auth: AuthView | None
    tls: TlsView | None
    decryptable: bool
    retry_policy: ListPolicyView | ExponentialPolicyView
    timeout_s: int
    rate_limit: RateLimitView | None
    ordered: bool
    format: Format
    signature: StandardSignatureView | HmacSignatureView
    handshake: HandshakeView
    created_at: datetime
    updated_at: datetime
    secret: NotRequired[Annotated[str, Field(description="The first of the secrets that were made just now.")]]
