"""The tables. Migrations build them, the API's lists are composed over them; the hot path's SQL is in `statements.py`.

`events`, `deliveries` and `attempts` are partitioned by day on their time-ordered key (`partitions.py`), so the key
gives time bounds, paging and retention at once. A column stands here only if something reads it.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = MetaData()

PARTITIONED = ("events", "deliveries", "attempts")

_GIVEN_UP = text("status IN ('dead', 'canceled')")


def _moment(name: str, *, nullable: bool = False, now: bool = False) -> Column[object]:
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable,
        server_default=text("clock_timestamp()") if now else None,
    )


api_keys = Table(
    "api_keys",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False),  # shown in lists, so that a person can tell keys apart
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("tenant", Text),  # NULL: an admin's key, which sees every tenant
    Column("scopes", ARRAY(Text), nullable=False, server_default="{*}"),  # schemas.scopes.Scope; * for every one
    _moment("created_at", now=True),
    _moment("expires_at", nullable=True),
    _moment("revoked_at", nullable=True),
    Column("rate_per_min", Integer),  # requests a minute; NULL: what the installation sets
    Column("replaced_by", UUID),  # the key that it was rotated to
    Column("uses", BigInteger, nullable=False, server_default=text("0")),  # counted in batches, as is
    _moment("last_used_at", nullable=True),
    CheckConstraint("rate_per_min > 0", name="rate"),
    Index("api_keys_by_tenant", "tenant", "id"),
)

# What the API's processes have taken of each key's requests in the current window (infra/store/allowances.py).
api_key_windows = Table(
    "api_key_windows",
    metadata,
    Column("key_id", UUID, primary_key=True),
    Column("number", BigInteger, nullable=False),  # of the window, since 1970
    Column("taken", Integer, nullable=False),
    Column("granted", Integer, nullable=False),  # to who asked last
    prefixes=["UNLOGGED"],
)

# One row. Every change of a subscription adds one to it in its own transaction, under the exclusive advisory lock
# that admission takes shared; see `store/locks.py`.
subscription_version = Table(
    "subscription_version",
    metadata,
    Column("only", Boolean, primary_key=True, server_default=text("true")),
    Column("version", BigInteger, nullable=False),
    CheckConstraint('"only"', name="one_row"),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("event_types", ARRAY(Text), nullable=False),  # AMQP topic patterns
    Column("filter", JSONB),  # which events of those types: see schemas/filters.py; NULL for all
    Column("state", Text, nullable=False, server_default="enabled"),
    Column("state_reason", Text),  # why it is disabled or paused, for a person
    Column("timeout_s", Integer, nullable=False),
    Column("retry_policy", JSONB, nullable=False),
    Column("rate_per_s", Double),  # the rate limit, in requests a second; NULL for none
    Column("rate_burst", Integer),  # requests that may go at once after a rest
    Column("ordered", Boolean, nullable=False, server_default=text("false")),  # one delivery at a time, as admitted
    Column("headers", LargeBinary),  # encrypted JSON object; header values are often secrets
    Column("secrets", LargeBinary, nullable=False),  # encrypted JSON list of {"secret", "expires_at"}
    # How it is written to: see schemas/destinations.py.
    Column("format", Text, nullable=False, server_default="standard"),
    Column("signature", JSONB, nullable=False, server_default='{"scheme": "standard", "versions": ["v1"]}'),
    Column("auth", LargeBinary),  # encrypted JSON; NULL for none
    Column("tls", LargeBinary),  # encrypted JSON; NULL for the system's authorities and no client certificate
    Column("handshake", Boolean, nullable=False, server_default=text("false")),  # ask before the first delivery
    _moment("validated_at", nullable=True),  # when this URL agreed in the handshake
    Column("allowed_per_min", Integer),  # requests a minute that it allowed then; NULL: as many as there are
    Column("version", BigInteger, nullable=False),  # subscription_version when it last changed
    _moment("created_at", now=True),
    _moment("updated_at", now=True),
    _moment("deleted_at", nullable=True),  # a deleted one stays for its history, unreachable
    # The endpoint. Not part of the configuration, so `version` does not move with it.
    Column("mode", Text, nullable=False, server_default="open"),  # open, or held: deliveries join its backlog
    Column("feeder", UUID),  # the dispatcher that holds its lease, while held
    _moment("paced_until", nullable=True),  # when the bucket of its rate limit is full again, while nobody feeds it
    _moment("breaker_until", nullable=True),  # rests until then, and is held; NULL: its breaker is closed
    Column("breaker_times", Integer, nullable=False, server_default="0"),  # rests in a row
    # Its streak, at this URL and in this state: see dispatcher/core/streak.py.
    _moment("failing_since", nullable=True),  # when the first failure was counted; NULL: the last attempt was delivered
    Column("failures", BigInteger, nullable=False, server_default=text("0")),  # attempts of the streak
    Column("failing_told", Boolean, nullable=False, server_default=text("false")),  # by hookhare.subscription.failing
    # Whether a pattern of it asks for Hookhare's own events.
    Column("operational", Boolean, nullable=False, server_default=text("false")),
    CheckConstraint("(rate_per_s > 0 AND rate_burst > 0) OR (rate_per_s IS NULL AND rate_burst IS NULL)", name="rate"),
    CheckConstraint("state IN ('enabled', 'paused', 'disabled')", name="state_known"),
    CheckConstraint("mode IN ('open', 'held')", name="mode_known"),
    Index("subscriptions_by_tenant", "tenant", "id"),
    Index("subscriptions_by_version", "version"),
    Index("subscriptions_held", "id", postgresql_where=text("mode = 'held'")),
    Index("subscriptions_failing", "id", postgresql_where=text("failing_since IS NOT NULL")),
    Index("subscriptions_operational", "tenant", postgresql_where=text("operational")),
)

# The catalogue: one for all tenants. A change of it counts as one of a subscription: see `subscription_version`.
event_types = Table(
    "event_types",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("name", Text, nullable=False),  # the type itself
    Column("description", Text, nullable=False, server_default=""),
    Column("example", LargeBinary),  # of an event's data: JSON text; keeps the newest schema
    _moment("deprecated_at", nullable=True),
    Column("deprecation", Text),  # what takes its place, for a person
    Column("newest", Integer),  # version of its schema; NULL: it has none
    Column("version", BigInteger, nullable=False),  # subscription_version when it last changed
    _moment("created_at", now=True),
    _moment("updated_at", now=True),
    _moment("deleted_at", nullable=True),  # a deleted one stays, so that who has it in memory is told
    Index("event_types_by_name", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("event_types_by_version", "version"),
)

# Added, and never changed. They go with their type.
event_type_versions = Table(
    "event_type_versions",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("event_type_id", UUID, nullable=False),
    Column("number", Integer, nullable=False),  # from 1 on
    Column("schema", LargeBinary, nullable=False),  # JSON text as it came
    _moment("created_at", now=True),
    UniqueConstraint("event_type_id", "number", name="event_type_versions_by_number"),
)

dispatchers = Table(
    "dispatchers",
    metadata,
    Column("id", UUID, primary_key=True),  # an incarnation: new at every start of a process
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    _moment("started_at", now=True),
    _moment("renewed_at", now=True),
    _moment("steady_since", now=True),  # since when it has renewed without a gap
)

# What one dispatcher of all does at a time. Each has its row from the beginning on.
roles = Table(
    "roles",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", UUID),  # the dispatcher that has it
)

event_keys = Table(
    "event_keys",
    metadata,
    Column("tenant", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("external_id", Text, nullable=False),
    Column("event_id", UUID, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    _moment("created_at", now=True),
    PrimaryKeyConstraint("tenant", "source", "external_id"),
    Index("event_keys_by_age", "created_at"),
)

events = Table(
    "events",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("external_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("subject", Text),
    _moment("time"),
    Column("data", LargeBinary, nullable=False),  # the JSON text as it came
    Column("traceparent", Text),
    Column("headers", JSONB),  # that its requests have besides those of the subscription; NULL for none
    _moment("admitted_at", now=True),
    _moment("expunged_at", nullable=True),  # when its data and headers were overwritten; then `data` is empty
    postgresql_partition_by="RANGE (id)",
)

# Drawn under the lock on the subscription's row, so that among its deliveries the order is that of the commits.
delivery_ordinals = Sequence("delivery_ordinals", metadata=metadata)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("event_id", UUID, nullable=False),
    Column("subscription_id", UUID, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text),  # why it is held, dead or canceled; the last failure while retrying
    Column("attempts", Integer, nullable=False),  # made and committed in this cycle
    Column("cycle", Integer, nullable=False),  # 0, and one more for each replay
    _moment("next_attempt_at", nullable=True),  # when retrying: not before
    _moment("hint_due_at", nullable=True),  # when retrying: when the rung that carries its hint expires
    Column("claimed_by", UUID),
    _moment("claimed_at", nullable=True),
    Column("fence", Integer, nullable=False),  # one more at each claim
    _moment("updated_at", now=True),
    Column("ordinal", BigInteger),  # its place in strict order; NULL where there was none when it was admitted
    Column("replay_id", UUID),  # the replay in bulk that began its cycle, if one did
    _moment("cycle_began_at", nullable=True),  # when its cycle was begun by an operator; NULL in cycle 0
    CheckConstraint("status IN ('pending', 'held', 'retrying', 'delivered', 'dead', 'canceled')", name="status_known"),
    Index("deliveries_by_subscription", "subscription_id", "id"),
    # The feeder: live ones before replays, then in order.
    Index(
        "deliveries_held",
        "subscription_id",
        text("(cycle > 0)"),
        text("ordinal NULLS FIRST"),
        "id",
        postgresql_where=text("status = 'held'"),
    ),
    # The reconciler, and whether anything of a subscription is in hand. As few as the fleet has in hand.
    Index("deliveries_claimed", "subscription_id", "claimed_by", postgresql_where=text("claimed_by IS NOT NULL")),
    Index("deliveries_retrying", "hint_due_at", postgresql_where=text("status = 'retrying'")),
    # Ending what waits of a subscription that goes; held ones have the feeder's index.
    Index("deliveries_retrying_of", "subscription_id", postgresql_where=text("status = 'retrying'")),
    # Of a replay: the list, and how far it is. What was never replayed in bulk is in neither.
    Index("deliveries_of_replay", "replay_id", "id", postgresql_where=text("replay_id IS NOT NULL")),
    Index("deliveries_of_replay_by_status", "replay_id", "status", postgresql_where=text("replay_id IS NOT NULL")),
    # Lists (delivery_pages.py).
    Index("deliveries_given_up", "status", "id", postgresql_where=_GIVEN_UP),
    Index("deliveries_given_up_of", "subscription_id", "status", "id", postgresql_where=_GIVEN_UP),
    postgresql_partition_by="RANGE (id)",
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("delivery_id", UUID, nullable=False),
    Column("cycle", Integer, nullable=False),
    Column("number", Integer, nullable=False),  # from 1 in each cycle
    _moment("started_at"),
    Column("duration_ms", Integer, nullable=False),
    Column("outcome", Text, nullable=False),  # delivered, retry, dead
    Column("superseded", Boolean, nullable=False),  # came after its claim was lost, or its delivery had ended
    Column("status_code", SmallInteger),
    Column("failure", Text),  # schemas.deliveries.Failure when there was no answer
    Column("reason", Text),
    Column("response_body", LargeBinary),
    Column("remote_address", Text),
    Column("url", Text, nullable=False),
    Column("dispatcher", UUID, nullable=False),
    Column("response_headers", JSONB),  # those of infra.response_headers.KEPT that came
    Column("dns_ms", Integer),  # schemas.deliveries.Timings
    Column("connect_ms", Integer),
    Column("tls_ms", Integer),
    Column("first_byte_ms", Integer),
    Index("attempts_by_delivery", "delivery_id", "id"),
    postgresql_partition_by="RANGE (id)",
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("kind", Text, nullable=False),  # schemas.deliveries.DeadLetterKind
    Column("reason", Text, nullable=False),
    Column("tenant", Text),  # of a delivery or an event; unknown for what cannot be read
    Column("delivery_id", UUID),
    Column("cycle", Integer),
    Column("subscription_id", UUID),
    Column("event_id", UUID),
    Column("message_id", Text),  # of a message
    Column("identity", Text),  # of a message: the same one is stored once
    Column("routing_key", Text),
    Column("body", LargeBinary),  # of a message: the bytes as they came
    Column("headers", JSONB),
    Column("state", Text, nullable=False, server_default="open"),  # open, replayed, discarded
    _moment("created_at", now=True),
    _moment("settled_at", nullable=True),  # when it was replayed or discarded
    _moment("published_at", nullable=True),  # when a delivery's was published to hookhare.dead
    Column("discard_reason", Text),  # why it was discarded, in the words of who did it
    UniqueConstraint("delivery_id", "cycle", name="one_dead_letter_a_death"),
    UniqueConstraint("identity", name="one_dead_letter_a_message"),
    Index("dead_letters_unpublished", "id", postgresql_where=text("kind = 'delivery' AND published_at IS NULL")),
    Index("dead_letters_by_subscription", "subscription_id", "id"),
    Index("dead_letters_by_tenant", "tenant", "id"),  # a tenant's key lists its own, however many others have
    # Messages that are tied to an event: what conflicts with it. Few.
    Index(
        "dead_letters_of_event",
        "event_id",
        postgresql_where=text("event_id IS NOT NULL AND kind <> 'delivery'"),
    ),
)

replays = Table(
    "replays",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("tenant", Text),
    Column("filter", JSONB, nullable=False),  # as given; its time range is frozen at creation
    Column("state", Text, nullable=False),  # running, completed, canceled
    Column("cursor", UUID),  # the last delivery looked at
    Column("matched", Integer, nullable=False, server_default=text("0")),
    Column("replayed", Integer, nullable=False, server_default=text("0")),
    Column("skipped", Integer, nullable=False, server_default=text("0")),  # no longer replayable when reached
    Column("max_per_s", Double, nullable=False, server_default=text("100")),  # looked at in a second, at most
    _moment("paced_since", now=True),  # what it may do has been gathering since then
    _moment("created_at", now=True),
    _moment("ended_at", nullable=True),
    Index("replays_running", "id", postgresql_where=text("state = 'running'")),
)

# What was asked under an Idempotency-Key (infra/store/idempotency.py).
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("api_key_id", UUID, nullable=False),
    Column("route", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("seed", UUID, nullable=False),
    Column("claim", UUID, nullable=False),  # who does it, or did it last
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of the request
    _moment("claimed_at", nullable=True),  # set while it is in flight
    Column("answer", LargeBinary),  # encrypted
    _moment("created_at", now=True),
    PrimaryKeyConstraint("api_key_id", "route", "key"),
    Index("idempotency_keys_by_age", "created_at"),
)

# Hookhare's own events, from the change that they tell of until they are published (infra/store/operational.py).
operational_events = Table(
    "operational_events",
    metadata,
    Column("id", UUID, primary_key=True),  # time-ordered; the event's id for its producer, which is us
    Column("tenant", Text, nullable=False),
    Column("type", Text, nullable=False),  # schemas.operational.OperationalType
    Column("data", JSONB, nullable=False),  # keys of rows as they are, under names that end in _id
    _moment("created_at", now=True),
)

# Who changed what. Rows are added and never changed, which triggers see to (v0015).
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("tenant", Text),  # whose the target is; NULL: of the installation
    Column("key_id", UUID),  # NULL: the command `hookhare` on the database itself
    Column("action", Text, nullable=False),  # subscription.updated
    Column("target", Text, nullable=False),  # its public id
    Column("address", Text),  # that the request came from
    Column("request_id", Text),
    Column("before", JSONB),  # as the API shows it, so without secrets
    Column("after", JSONB),
    _moment("created_at", now=True),
    Index("audit_log_by_tenant", "tenant", "id"),
    Index("audit_log_by_key", "key_id", "id"),
    Index("audit_log_by_target", "target", "id"),
    Index("audit_log_by_action", "action", "id"),
)

# The embedded mode's broker (infra/broker/postgres.py).
queue_messages = Table(
    "queue_messages",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("queue", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("routing_key", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("headers", JSONB, nullable=False),
    Column("content_type", Text),
    Column("type", Text),
    _moment("timestamp", nullable=True),
    Column("app_id", Text),
    Column("dead_lettered_from", Text),
    _moment("visible_at"),  # not before; pushed forward by a consumer's lease
    Column("consumer", UUID),  # who leased it last
    Column("delivery_count", Integer, nullable=False, server_default=text("0")),
    Index("queue_messages_due", "queue", "visible_at", "id"),
)
