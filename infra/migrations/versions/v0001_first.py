"""Everything that the first release needs.

Written out, not taken from `infra.store.tables`: a revision must not change when the tables do. A test holds
the two against each other.
"""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE api_keys (
        id uuid PRIMARY KEY,
        name text NOT NULL,
        prefix text NOT NULL,
        sha256 bytea NOT NULL UNIQUE,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        revoked_at timestamptz
    )
    """,
    """
    CREATE TABLE subscription_version (
        "only" boolean PRIMARY KEY DEFAULT true CONSTRAINT one_row CHECK ("only"),
        version bigint NOT NULL
    )
    """,
    "INSERT INTO subscription_version (version) VALUES (0)",
    """
    CREATE TABLE subscriptions (
        id uuid PRIMARY KEY,
        tenant text NOT NULL,
        url text NOT NULL,
        description text NOT NULL DEFAULT '',
        event_types text[] NOT NULL,
        state text NOT NULL DEFAULT 'enabled' CONSTRAINT state_known CHECK (state IN ('enabled', 'paused', 'disabled')),
        state_reason text,
        timeout_s integer NOT NULL,
        retry_policy jsonb NOT NULL,
        headers bytea,
        secrets bytea NOT NULL,
        version bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        deleted_at timestamptz,
        mode text NOT NULL DEFAULT 'open' CONSTRAINT mode_known CHECK (mode IN ('open', 'held')),
        feeder uuid
    )
    """,
    "CREATE INDEX subscriptions_by_tenant ON subscriptions (tenant, id)",
    "CREATE INDEX subscriptions_by_version ON subscriptions (version)",
    "CREATE INDEX subscriptions_held ON subscriptions (id) WHERE mode = 'held'",
    """
    CREATE TABLE dispatchers (
        id uuid PRIMARY KEY,
        host text NOT NULL,
        pid integer NOT NULL,
        started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        renewed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        steady_since timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    """
    CREATE TABLE event_keys (
        tenant text NOT NULL,
        source text NOT NULL,
        external_id text NOT NULL,
        event_id uuid NOT NULL,
        digest bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (tenant, source, external_id)
    )
    """,
    "CREATE INDEX event_keys_by_age ON event_keys (created_at)",
    """
    CREATE TABLE events (
        id uuid PRIMARY KEY,
        tenant text NOT NULL,
        source text NOT NULL,
        external_id text NOT NULL,
        type text NOT NULL,
        subject text,
        time timestamptz NOT NULL,
        data bytea NOT NULL,
        traceparent text,
        admitted_at timestamptz NOT NULL DEFAULT clock_timestamp()
    ) PARTITION BY RANGE (id)
    """,
    """
    CREATE TABLE deliveries (
        id uuid PRIMARY KEY,
        event_id uuid NOT NULL,
        subscription_id uuid NOT NULL,
        tenant text NOT NULL,
        event_type text NOT NULL,
        status text NOT NULL CONSTRAINT status_known
            CHECK (status IN ('pending', 'held', 'retrying', 'delivered', 'dead', 'canceled')),
        reason text,
        attempts integer NOT NULL,
        cycle integer NOT NULL,
        next_attempt_at timestamptz,
        hint_due_at timestamptz,
        claimed_by uuid,
        claimed_at timestamptz,
        fence integer NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
    ) PARTITION BY RANGE (id)
    """,
    "CREATE INDEX deliveries_by_subscription ON deliveries (subscription_id, id)",
    "CREATE INDEX deliveries_held ON deliveries (subscription_id, (cycle > 0), id) WHERE status = 'held'",
    "CREATE INDEX deliveries_claimed ON deliveries (claimed_by) WHERE claimed_by IS NOT NULL",
    "CREATE INDEX deliveries_retrying ON deliveries (hint_due_at) WHERE status = 'retrying'",
    "CREATE INDEX deliveries_retrying_of ON deliveries (subscription_id) WHERE status = 'retrying'",
    """
    CREATE TABLE attempts (
        id uuid PRIMARY KEY,
        delivery_id uuid NOT NULL,
        cycle integer NOT NULL,
        number integer NOT NULL,
        started_at timestamptz NOT NULL,
        duration_ms integer NOT NULL,
        outcome text NOT NULL,
        superseded boolean NOT NULL,
        status_code smallint,
        failure text,
        reason text,
        response_body bytea,
        remote_address text,
        url text NOT NULL,
        dispatcher uuid NOT NULL
    ) PARTITION BY RANGE (id)
    """,
    "CREATE INDEX attempts_by_delivery ON attempts (delivery_id, id)",
    """
    CREATE TABLE dead_letters (
        id uuid PRIMARY KEY,
        kind text NOT NULL,
        reason text NOT NULL,
        tenant text,
        delivery_id uuid,
        cycle integer,
        subscription_id uuid,
        event_id uuid,
        message_id text,
        identity text,
        routing_key text,
        body bytea,
        headers jsonb,
        state text NOT NULL DEFAULT 'open',
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        settled_at timestamptz,
        published_at timestamptz,
        CONSTRAINT one_dead_letter_a_death UNIQUE (delivery_id, cycle),
        CONSTRAINT one_dead_letter_a_message UNIQUE (identity)
    )
    """,
    "CREATE INDEX dead_letters_unpublished ON dead_letters (id) WHERE kind = 'delivery' AND published_at IS NULL",
    "CREATE INDEX dead_letters_by_subscription ON dead_letters (subscription_id, id)",
    """
    CREATE TABLE replays (
        id uuid PRIMARY KEY,
        tenant text,
        filter jsonb NOT NULL,
        state text NOT NULL,
        cursor uuid,
        matched integer NOT NULL DEFAULT 0,
        replayed integer NOT NULL DEFAULT 0,
        skipped integer NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        ended_at timestamptz
    )
    """,
    "CREATE INDEX replays_running ON replays (id) WHERE state = 'running'",
    """
    CREATE TABLE queue_messages (
        id bigserial PRIMARY KEY,
        queue text NOT NULL,
        message_id text NOT NULL,
        routing_key text NOT NULL,
        body bytea NOT NULL,
        headers jsonb NOT NULL,
        content_type text,
        type text,
        "timestamp" timestamptz,
        app_id text,
        dead_lettered_from text,
        visible_at timestamptz NOT NULL,
        consumer uuid,
        delivery_count integer NOT NULL DEFAULT 0
    ) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0)
    """,  # every message leaves two dead rows: cleaned up early and at once, or a busy hour would grow to gigabytes
    "CREATE INDEX queue_messages_due ON queue_messages (queue, visible_at, id)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
