"""Every setting there is, from `HOOKHARE_*` environment variables, read once and frozen.

Units stand in the names. `hookhare settings` prints this list with what is in force; nothing else reads the
environment.
"""

import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from infra.egress_rules import read_exceptions, read_ports, read_proxy
from schemas.errors import ConfigurationError
from schemas.subscriptions import MAX_RATE_PER_S, MIN_RATE_PER_S

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]

MAX_REQUESTS_PER_MIN = 1_000_000

_PREFIX = "HOOKHARE_"
_MAX_DOMAIN_CHARS = 253
_DOMAIN = re.compile(r"[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*")
# RFC 6454 section 6.2, in lower case as browsers send it.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::[1-9][0-9]{0,4})?")
_OF_TESTS = "HOOKHARE_TEST_"  # what the tests of Hookhare itself are told


class Settings(BaseSettings):
    """The settings of every process; each field's description says what it does and what it is measured in."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    # Where things are
    broker_url: SecretStr | None = Field(
        None,
        description="amqp:// or amqps:// URL of RabbitMQ, or the postgresql:// URL of the embedded broker's database; "
        "without it, the database is the broker",
    )
    database_url: SecretStr | None = Field(
        None, description="postgresql:// URL; without it, only the embedded mode (`hookhare dev`) works"
    )
    home: str = Field(".hookhare", description="folder of the embedded mode: database, encryption key, admin key")
    encryption_keys: SecretStr | None = Field(
        None, description="Fernet keys, comma-separated; the first encrypts, all decrypt"
    )

    # What comes in
    max_event_bytes: Count = Field(262_144, description="largest event message accepted, body in bytes")
    max_batch_bytes: Count = Field(1_048_576, description="largest body of a batch of events to the API, in bytes")
    idempotency_s: Seconds = Field(86_400, description="how long an Idempotency-Key is known, in seconds")
    event_bindings: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="further exchanges to take events from, comma-separated, each exchange:routing-key-pattern",
    )
    events_delivery_limit: Count = Field(
        100, description="times that an event or work message may come back before it is dead-lettered"
    )
    ordered_admission: bool = Field(
        False,
        description="true: one dispatcher at a time admits events, in the order of the queue, as strict order needs it "
        "that begins at the publisher; it makes their first attempts too, so the fleet is no faster than one",
    )
    event_schema_mode: Literal["refuse", "warn", "off"] = Field(
        "refuse",
        description="what is done with an event whose data breaks the newest schema of its type, or the version that "
        "its dataschema names: refuse (422 at the API, a dead letter at the broker), warn (it is taken, told, logged "
        "and counted) or off; types without a schema are not checked. The same for the API and the dispatchers",
    )
    unknown_event_types: Literal["allow", "refuse"] = Field(
        "allow",
        description="whether events may have types that are not in the catalogue: allow, or refuse as above",
    )
    dedupe_window_s: Seconds = Field(604_800, description="how long a (tenant, source, id) is known, in seconds")

    # The dispatcher's work in hand
    prefetch: Count = Field(1000, le=65_535, description="messages a dispatcher holds unacked, for each queue")
    batch_rows: Count = Field(500, description="rows in one group commit, at most")
    max_in_hand: Count = Field(4000, ge=16, description="deliveries claimed by one dispatcher at once")
    max_in_hand_bytes: Count = Field(134_217_728, description="bytes of event data in hand in one dispatcher at once")
    endpoint_max_in_flight: Count = Field(32, description="POSTs under way to one endpoint from one dispatcher")
    breaker_window_s: Seconds = Field(60, description="window that an endpoint's failures are counted in, in seconds")
    breaker_min_attempts: Count = Field(100, description="attempts in the window before their failures are judged")
    breaker_failure_ratio: float = Field(
        0.8, gt=0, le=1, description="share of failed attempts at which an endpoint is left alone"
    )
    breaker_timeouts: Count = Field(
        10,
        description="timeouts in a row at which an endpoint is left alone; and so many POSTs begin before it answers",
    )
    breaker_rest_s: Seconds = Field(
        15, description="how long an endpoint is first left alone, in seconds; doubled while probes fail"
    )
    breaker_longest_rest_s: Seconds = Field(600, description="longest that an endpoint is left alone, in seconds")
    failing_after_failures: Count = Field(
        10, description="attempts in a row, none delivered, before a subscription is told to be failing"
    )
    failing_after_s: Seconds = Field(300, description="and how long these must have lasted, in seconds")
    disable_after_failures: Count = Field(
        20, description="attempts in a row, none delivered, before a subscription is disabled"
    )
    disable_after_s: Seconds = Field(432_000, description="and how long these must have lasted, in seconds")
    drain_s: Seconds = Field(20, description="how long a stopping dispatcher waits for what is in flight, in seconds")

    # Liveness; checked against each other at start-up (dispatcher/core/liveness.py)
    heartbeat_s: Seconds = Field(2, description="period of a dispatcher's heartbeat, in seconds")
    renewal_timeout_s: Seconds = Field(3, description="longest that one renewal of the heartbeat may take, in seconds")
    begin_margin_s: Seconds = Field(1, description="longest from the last check to the request being sent, in seconds")
    liveness_s: Seconds = Field(12, description="a dispatcher silent for so long is taken for dead, in seconds")
    max_wait_in_hand_s: Seconds = Field(
        30, description="longest that a claimed delivery waits for its POST, in seconds"
    )
    settle_allowance_s: Seconds = Field(30, description="time allowed to commit an outcome, in seconds")
    claim_cap_s: Seconds = Field(150, description="a claim older than this is void, in seconds")

    # Upkeep
    replay_max_per_s: float = Field(
        100,
        ge=MIN_RATE_PER_S,
        le=MAX_RATE_PER_S,
        description="deliveries that a replay begins again in a second, unless it says otherwise",
    )
    feeder_period_s: Seconds = Field(0.25, description="how often the feeder looks for held endpoints, in seconds")
    reconcile_period_s: Seconds = Field(5, description="how often the reconciler runs, in seconds")
    reconcile_grace_s: Seconds = Field(
        60, description="how late a retry's hint may be before the reconciler acts, in seconds"
    )
    maintenance_period_s: Seconds = Field(
        3600, description="how often partitions and old keys are looked after, in seconds"
    )
    retention_days: Count = Field(30, description="days that events, deliveries and attempts are kept")
    audit_days: Count = Field(365, le=36_500, description="days that the audit log is kept")
    partitions_ahead_days: Count = Field(3, description="days that partitions are made in advance")

    # Egress
    webhook_origin: str = Field(
        "hookhare.invalid",
        description="domain name that this installation goes by; endpoints that are asked whether they agree to take "
        "deliveries are told it (WebHook-Request-Origin)",
    )
    egress_allow: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="networks that webhooks may reach although they are not public, comma-separated CIDRs"
    )
    egress_http: bool = Field(
        False, description="true: webhooks may go to http:// endpoints too, where anyone on the way can read them"
    )
    egress_ports: str = Field(
        "80,443,8080,8443",
        description="ports that webhooks may go to, comma-separated, with ranges as 10000-10100; 1-65535 is any",
    )
    egress_proxy: SecretStr | None = Field(
        None,
        description="proxy that webhooks go through, by HTTP CONNECT: http://host:port or "
        "http://user:password@host:port; it must refuse private addresses, because where a name leads is then known to "
        "it alone (addresses that a URL spells out are refused here too)",
    )
    egress_no_proxy: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="what is reached without the proxy, comma-separated: host names, .suffixes of names, and CIDRs for "
        "addresses that a URL spells out",
    )
    response_keep_bytes: Count = Field(4096, description="bytes of a response's body that are read and kept")

    # The world
    broker_timeout_s: Seconds = Field(10, description="longest wait for one answer of the broker, in seconds")
    broker_lease_s: Seconds = Field(
        15,
        ge=1,
        description="how long after its consumer died the embedded broker hands a message out again, in seconds",
    )
    database_timeout_s: Seconds = Field(10, description="longest wait for one statement, in seconds")
    database_pool: Count = Field(10, description="connections to the database from one process")
    api_host: str = Field("127.0.0.1", description="address that the API listens on")
    api_max_connections: Count = Field(
        1000,
        description="connections that one API process has open at once; for one more, the one that has waited longest "
        "without a request is closed",
    )
    api_cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="origins of the pages whose scripts may call the API from a browser, comma-separated, each "
        "scheme://host or scheme://host:port; * is any page; without it, none may",
    )
    api_max_requests: Count = Field(500, description="requests that one API process works on at once")
    key_requests_per_min: Count = Field(
        60_000,
        le=MAX_REQUESTS_PER_MIN,
        description="requests that an API key may make a minute, unless it says otherwise",
    )
    auth_failures_per_min: Count = Field(
        60,
        le=100_000,
        description="wrong API keys that one address may send a minute to one process before it has to wait",
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="networks of the proxies in front of the API whose X-Forwarded-For is believed, comma-separated "
        "CIDRs; without them a caller's address is that of its connection",
    )
    api_port: int = Field(8080, ge=0, le=65_535, description="port of the API; 0 takes a free one")
    dispatcher_host: str = Field("127.0.0.1", description="address of the dispatcher's health and metrics")
    dispatcher_port: int = Field(
        9090, ge=0, le=65_535, description="port of the dispatcher's health and metrics; 0 takes a free one"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["json", "console"] = Field("json", description="one JSON object a line, or lines for a person")
    otlp_endpoint: SecretStr | None = Field(  # its URL may hold a password
        None, description="OTLP/HTTP base URL that spans are sent to; without it none are made"
    )

    @field_validator("event_bindings", "egress_no_proxy", "api_cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _parts(value) if isinstance(value, str) else value

    @field_validator("api_cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value != ("*",) and not all(map(_ORIGIN.fullmatch, value)):
            raise PydanticCustomError(
                "origins",
                "must be origins as a browser sends them, as https://app.example.com,http://localhost:3000, or *",
            )
        return value

    @field_validator("webhook_origin")
    @classmethod
    def _domain(cls, value: str) -> str:
        if len(value) > _MAX_DOMAIN_CHARS or not _DOMAIN.fullmatch(value):
            raise PydanticCustomError("domain", "must be a domain name, as hooks.example.com")
        return value

    @field_validator("egress_allow", "trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ip_network(part) for part in _parts(value))
        except ValueError:  # pydantic's own text speaks of the kinds of networks in turn
            raise PydanticCustomError("networks", "must be networks in CIDR form, as 10.0.0.0/8") from None

    @field_validator("egress_ports")
    @classmethod
    def _ports(cls, value: str) -> str:
        try:
            read_ports(value)
        except ValueError:
            raise PydanticCustomError("ports", "must be ports and ranges of them, as 443,10000-10100") from None
        return value

    @field_validator("egress_proxy")
    @classmethod
    def _proxy(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            if value is not None:
                read_proxy(value.get_secret_value())
        except ValueError as fault:
            raise PydanticCustomError("proxy", "{fault}", {"fault": str(fault)}) from None
        return value

    @field_validator("egress_no_proxy")
    @classmethod
    def _exceptions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            read_exceptions(value)
        except ValueError:
            raise PydanticCustomError(
                "no_proxy",
                "must be host names, .suffixes of names and CIDRs, as hooks.example,.internal,10.0.0.0/8",
            ) from None
        return value


def read_settings(**overrides: object) -> Settings:
    """The settings in force. Raises ConfigurationError that names each variable at fault."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        faults: dict[str, str] = {}
        for fault in error.errors():
            faults.setdefault(f"{_PREFIX}{fault['loc'][0]}".upper(), fault["msg"])
        text = "; ".join(f"{variable}: {message}" for variable, message in faults.items())
        raise ConfigurationError(text) from None  # a cause would show the rejected value, which may be a secret


def unknown_variables() -> tuple[str, ...]:
    """The HOOKHARE_* variables of the environment that are no setting: misspelt, or of another release. Sorted."""
    known = {f"{_PREFIX}{name}".upper() for name in Settings.model_fields}
    return tuple(
        sorted(
            name
            for name in os.environ
            if name.upper().startswith(_PREFIX) and not name.upper().startswith(_OF_TESTS) and name.upper() not in known
        )
    )


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
