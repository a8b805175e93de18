"""The hot path's SQL, named and described in one place.

Conventions: `$1` first is the dispatcher's incarnation where there is one. Batches come as arrays, those of many
columns as `infra.store.arrays` shortens them. Rows are locked in order of id, so that two batches never wait for each
other in a circle.

A bound on the ids of a batch lets the planner skip the other days' partitions (measured 1.3 to 1.6 times as fast over
40 of them). Where a batch is joined, that is its least id and not its greatest: two bounds are taken for half a percent
of the table, whatever they are, and a prepared plan then reads all that lies between. Settling 400 rows, one of them
old, took 0.7 s that way over 3.6 million rows, and 6 ms this way.

Ages are by the database's clock. A dispatcher's own is by `clock_timestamp()`, which runs on within a statement; others
are judged by `statement_timestamp()`, which is not past the statement's snapshot and, being stable, can use an index.
"""

from typing import Final

from infra.store.arrays import table

# --- Dispatchers -----------------------------------------------------------------------------------------------

# $1 incarnation, $2 host, $3 pid, $4 longest gap in seconds that still counts as steady.
RENEW_HEARTBEAT: Final = """
INSERT INTO dispatchers AS d (id, host, pid) VALUES ($1, $2, $3)
ON CONFLICT (id) DO UPDATE SET
    steady_since = CASE WHEN d.renewed_at < clock_timestamp() - make_interval(secs => $4)
                        THEN clock_timestamp() ELSE d.steady_since END,
    renewed_at = clock_timestamp()
"""

RETIRE_DISPATCHER: Final = "DELETE FROM dispatchers WHERE id = $1"

# Those long dead. $1 age in seconds.
FORGET_DISPATCHERS: Final = "DELETE FROM dispatchers WHERE renewed_at < clock_timestamp() - make_interval(secs => $1)"

# Whether $1's heartbeat is younger than $2 seconds. Part of every transaction that claims.
_FRESH: Final = """EXISTS (SELECT 1 FROM dispatchers AS self WHERE self.id = $1
                           AND self.renewed_at > clock_timestamp() - make_interval(secs => $2))"""

# --- Roles: what one dispatcher of all does at a time -----------------------------------------------------------

# $1 incarnation, $2 as for _FRESH, $3 the role. Waits for nobody who works under it.
TAKE_ROLE: Final = f"UPDATE roles SET holder = $1 WHERE name = $3 AND holder IS NULL AND {_FRESH} RETURNING true"
HAS_ROLE: Final = "SELECT true FROM roles WHERE name = $2 AND holder = $1"

# Part of every transaction that works under the role: nobody else has it before that is committed.
SHARE_ROLE: Final = "SELECT true FROM roles WHERE name = $2 AND holder = $1 FOR SHARE"

GIVE_UP_ROLE: Final = "UPDATE roles SET holder = NULL WHERE name = $2 AND holder = $1"

# --- Admission -------------------------------------------------------------------------------------------------

# After share_subscriptions(): a later statement, so that its snapshot is younger than the lock.
ADMISSION_VIEW: Final = f"SELECT version, {_FRESH} AS fresh FROM subscription_version"

# One row for each key that is new, or whose window has passed. $1…$5 arrays: tenant, source, external id,
# event, digest; $6 the window in seconds. Waits for another dispatcher that is admitting the same key.
TAKE_EVENT_KEYS: Final = """
INSERT INTO event_keys AS known (tenant, source, external_id, event_id, digest)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::bytea[]) AS new
ORDER BY 1, 2, 3
ON CONFLICT (tenant, source, external_id) DO UPDATE
    SET event_id = excluded.event_id, digest = excluded.digest, created_at = clock_timestamp()
    WHERE known.created_at < clock_timestamp() - make_interval(secs => $6)
RETURNING event_id
"""

# The events and digests of keys that were known already. Without those of what was expunged: nothing conflicts with
# what nobody knows any more. $1…$3 arrays: tenant, source, external id.
KNOWN_EVENT_KEYS: Final = """
SELECT tenant, source, external_id, event_id, digest
FROM event_keys JOIN unnest($1::text[], $2::text[], $3::text[]) AS asked (tenant, source, external_id)
     USING (tenant, source, external_id)
WHERE digest <> ''
"""

INSERT_EVENTS: Final = f"""
INSERT INTO events (id, tenant, source, external_id, type, subject, time, data, traceparent, headers)
SELECT * FROM {
    table(
        "id uuid, tenant text, source text, external_id text, type text, subject text, "
        "time timestamptz, data bytea, traceparent text, headers jsonb"
    )
} AS new
ON CONFLICT (id) DO NOTHING
"""

# The rows that are new come back: fan-out repeated after the dedupe window lands on the rows that it made before.
# `hold` is the reason to hold it, or NULL to claim it; `ordinal` its place in strict order, or NULL.
INSERT_DELIVERIES: Final = f"""
INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, reason, attempts, cycle,
                        claimed_by, claimed_at, fence, ordinal)
SELECT id, event_id, subscription_id, tenant, event_type,
       CASE WHEN hold IS NULL THEN 'pending' ELSE 'held' END, hold, 0, 0,
       CASE WHEN hold IS NULL THEN $1::uuid END,
       CASE WHEN hold IS NULL THEN clock_timestamp() END,
       CASE WHEN hold IS NULL THEN 1 ELSE 0 END, ordinal
FROM {
    table(
        "id uuid, event_id uuid, subscription_id uuid, tenant text, event_type text, hold text, ordinal bigint", start=2
    )
} AS new
ON CONFLICT (id) DO NOTHING
RETURNING id
"""

# $1 places in strict order, ascending. After LOCK_ENDPOINTS on the subscriptions that they are for: whoever draws later
# for one of them has waited for this commit, so a delivery that can be seen has none before it that is yet to come.
DRAW_ORDINALS: Final = "SELECT nextval('delivery_ordinals') AS ordinal FROM generate_series(1, $1)"

# What a conflicting event said, once for each `identity`. $1…$9: id, reason, tenant, identity, message id,
# routing key, body, headers, the event that has its id.
INSERT_CONFLICT: Final = """
INSERT INTO dead_letters (id, kind, reason, tenant, identity, message_id, routing_key, body, headers, event_id)
VALUES ($1, 'conflict', $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT DO NOTHING
"""

# --- An endpoint's mode ----------------------------------------------------------------------------------------

# Always locks, also what is held already: the lock is what closes the race with CLOSE_BACKLOG.
LOCK_ENDPOINTS: Final = "SELECT id, mode FROM subscriptions WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE"
HOLD_ENDPOINTS: Final = "UPDATE subscriptions SET mode = 'held' WHERE id = ANY($1::uuid[]) AND mode = 'open'"

# `full_in_s`: how long the bucket of its rate limit takes to be full, as its last feeder left it.
HELD_ENDPOINTS: Final = """
SELECT id, feeder, extract(epoch FROM paced_until - clock_timestamp())::float8 AS full_in_s,
       extract(epoch FROM breaker_until - clock_timestamp())::float8 AS rest_s, breaker_times
FROM subscriptions WHERE mode = 'held'
"""

# A breaker that opens: the first dispatcher to say so wins, then who holds the lease. Under LOCK_ENDPOINTS. $2…$4
# arrays: subscription, how long it rests in seconds, for which time in a row.
OPEN_BREAKERS: Final = """
UPDATE subscriptions AS s SET
    mode = 'held', breaker_until = clock_timestamp() + make_interval(secs => new.rest_s), breaker_times = new.times
FROM unnest($2::uuid[], $3::float8[], $4::int[]) AS new (id, rest_s, times)
WHERE s.id = new.id AND (s.breaker_until IS NULL OR s.feeder = $1)
"""

# $2 array of subscriptions.
CLOSE_BREAKERS: Final = """
UPDATE subscriptions SET breaker_until = NULL, breaker_times = 0 WHERE id = ANY($2::uuid[]) AND feeder = $1
"""

# Take the lease of held endpoints that nobody feeds. $3 how many.
LEASE_ENDPOINTS: Final = f"""
UPDATE subscriptions SET feeder = $1
WHERE {_FRESH} AND id IN (SELECT id FROM subscriptions WHERE mode = 'held' AND feeder IS NULL
                          ORDER BY id LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED)
RETURNING id
"""

# $2 array of subscriptions.
LOCK_LEASES: Final = """
SELECT id FROM subscriptions WHERE id = ANY($2::uuid[]) AND feeder = $1 ORDER BY id FOR NO KEY UPDATE
"""

# Those that nobody has locked.
LOCK_FREE_LEASES: Final = """
SELECT id FROM subscriptions WHERE id = ANY($2::uuid[]) AND feeder = $1 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""

# A statement of its own after LOCK_FREE_LEASES: its snapshot is younger than the locks, so no held row escapes it.
# $2, $3 arrays: subscription, seconds until its bucket is full.
CLOSE_BACKLOGS: Final = """
UPDATE subscriptions AS s SET
    mode = 'open', feeder = NULL,
    paced_until = CASE WHEN idle.full_in_s > 0 THEN clock_timestamp() + make_interval(secs => idle.full_in_s) END
FROM unnest($2::uuid[], $3::float8[]) AS idle (id, full_in_s)
WHERE s.id = idle.id AND s.feeder = $1 AND s.breaker_until IS NULL
      AND NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.subscription_id = s.id AND d.status = 'held')
RETURNING s.id
"""

# The next owner of a lease that was not closed begins with an empty bucket: of its limit, or of what its endpoint
# allows, whichever takes longer (GREATEST passes over NULLs).
PACED_ANEW: Final = (
    "paced_until = clock_timestamp() + make_interval(secs => greatest(rate_burst / rate_per_s, 60.0 / allowed_per_min))"
)

RELEASE_LEASES: Final = f"UPDATE subscriptions SET feeder = NULL, {PACED_ANEW} WHERE feeder = $1"

# --- Claims ----------------------------------------------------------------------------------------------------

# Lets the planner skip the partitions that are older than all of the picked rows.
AMONG_PICKED: Final = "d.id = picked.id AND d.id >= (SELECT id FROM picked ORDER BY id LIMIT 1)"

# By an array, not by a join: the planner does not know how many are picked. It took them for a tenth of the backlog,
# also when there was room for one, and read the whole partition.
_CLAIM: Final = """
UPDATE deliveries AS d
SET claimed_by = $1, claimed_at = clock_timestamp(), fence = d.fence + 1, updated_at = clock_timestamp(){also}
WHERE d.id = ANY (ARRAY(SELECT id FROM picked)) AND d.id >= (SELECT id FROM picked ORDER BY id LIMIT 1)
RETURNING d.id, d.event_id, d.subscription_id, d.cycle, d.attempts, d.fence
"""

# What the feeder claims is not held any more: its endpoint can be opened while it is in hand.
_CLAIM_WAITING: Final = _CLAIM.format(also=", status = 'pending', reason = NULL")

# A work item's claim. $3…$5 arrays: delivery, cycle, attempt number; $6 the least delivery.
# A claim that is there, live or dead, is left alone: the reconciler judges the dead and holds their rows.
CLAIM_DUE: Final = f"""
WITH picked AS (
    SELECT d.id FROM deliveries AS d
    JOIN unnest($3::uuid[], $4::int[], $5::int[]) AS item (id, cycle, attempt)
      ON d.id = item.id AND d.cycle = item.cycle AND d.attempts = item.attempt - 1
    WHERE d.id >= $6 AND d.status = 'retrying' AND d.claimed_by IS NULL AND {_FRESH}
    ORDER BY d.id FOR NO KEY UPDATE OF d
)
{_CLAIM.format(also="")}"""

# The feeder's claim on backlogs whose leases it holds. $3, $4 arrays: subscription, how many. Live ones before replays;
# the ordinals are of a time in strict order.
CLAIM_HELD: Final = f"""
WITH picked AS (
    SELECT waiting.id
    FROM unnest($3::uuid[], $4::int[]) AS backlog (subscription_id, room)
    JOIN subscriptions AS s ON s.id = backlog.subscription_id AND s.feeder = $1 AND NOT s.ordered
    CROSS JOIN LATERAL (
        SELECT d.id FROM deliveries AS d
        WHERE d.subscription_id = s.id AND d.status = 'held' AND d.claimed_by IS NULL
        ORDER BY (d.cycle > 0), d.ordinal NULLS FIRST, d.id LIMIT backlog.room FOR NO KEY UPDATE SKIP LOCKED
    ) AS waiting
    WHERE {_FRESH}
)
{_CLAIM_WAITING}"""

# The feeder's claim in strict order: of each subscription its lowest row that has not ended, if it is held, and if no
# row of it, ended or not, has a claim. A statement of its own after LOCK_LEASES: so nobody else claims in this order
# meanwhile, and what the last owner of the lease has claimed is seen. $3 array of subscriptions.
# A pending row always has a claim. The lowest one is chosen before it is locked: were it skipped because somebody has
# it locked, or found changed, the next one must not take its place.
CLAIM_IN_ORDER: Final = f"""
WITH lowest AS MATERIALIZED (
    SELECT first.id
    FROM subscriptions AS s CROSS JOIN LATERAL (
        SELECT d.id, d.cycle, d.ordinal FROM deliveries AS d
        WHERE d.subscription_id = s.id AND d.status = 'held'
        ORDER BY (d.cycle > 0), d.ordinal NULLS FIRST, d.id LIMIT 1
    ) AS first
    WHERE s.id = ANY($3::uuid[]) AND s.feeder = $1 AND {_FRESH}
      AND NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.subscription_id = s.id AND d.claimed_by IS NOT NULL)
      AND NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.subscription_id = s.id AND d.status = 'retrying'
                      AND (d.cycle > 0, coalesce(d.ordinal, 0), d.id)
                          < (first.cycle > 0, coalesce(first.ordinal, 0), first.id))
), picked AS (
    SELECT d.id FROM deliveries AS d JOIN lowest ON d.id = lowest.id
    WHERE d.id >= (SELECT id FROM lowest ORDER BY id LIMIT 1) AND d.status = 'held' AND d.claimed_by IS NULL
    ORDER BY d.id FOR NO KEY UPDATE OF d SKIP LOCKED
)
{_CLAIM_WAITING}"""

EVENTS_OF_CLAIMS: Final = """
SELECT id, source, external_id, type, subject, time, data, traceparent, headers, expunged_at IS NOT NULL AS expunged
FROM events WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3
"""

# Claims of $1 older than $2 seconds: those not in hand came from a commit whose answer was lost.
CLAIMS_OF: Final = """
SELECT id, subscription_id, event_id, cycle, attempts, fence FROM deliveries
WHERE claimed_by = $1 AND claimed_at < statement_timestamp() - make_interval(secs => $2)
"""

# --- Settlement ------------------------------------------------------------------------------------------------

LOCK_DELIVERIES: Final = """
SELECT id, status, cycle, attempts, fence, claimed_by IS NOT NULL AS claimed, reason
FROM deliveries WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 ORDER BY id FOR NO KEY UPDATE
"""

# `delay_s` until its retry, `rung_s` until the message of it is back, `claimed` whether the claim stays; $8 the least
# delivery. A row that stays `retrying` without a new delay keeps its times.
UPDATE_DELIVERIES: Final = f"""
UPDATE deliveries AS d SET
    status = new.status, reason = new.reason, attempts = new.attempts,
    next_attempt_at = CASE WHEN new.status = 'retrying' AND new.delay_s IS NULL THEN d.next_attempt_at
                           ELSE clock_timestamp() + make_interval(secs => new.delay_s) END,
    hint_due_at = CASE WHEN new.status = 'retrying' AND new.rung_s IS NULL THEN d.hint_due_at
                       ELSE clock_timestamp() + make_interval(secs => new.rung_s) END,
    claimed_by = CASE WHEN new.claimed THEN d.claimed_by END,
    claimed_at = CASE WHEN new.claimed THEN d.claimed_at END,
    updated_at = clock_timestamp()
FROM {table("id uuid, status text, reason text, attempts int, delay_s float8, rung_s float8, claimed bool")} AS new
WHERE d.id = new.id AND d.id >= $8
"""

INSERT_ATTEMPTS: Final = f"""
INSERT INTO attempts (id, delivery_id, cycle, number, started_at, duration_ms, outcome, superseded, status_code,
                      failure, reason, response_body, remote_address, url, dispatcher, response_headers,
                      dns_ms, connect_ms, tls_ms, first_byte_ms)
SELECT * FROM {
    table(
        "id uuid, delivery_id uuid, cycle int, number int, started_at timestamptz, duration_ms int, "
        "outcome text, superseded bool, status_code smallint, failure text, reason text, "
        "response_body bytea, remote_address text, url text, dispatcher uuid, response_headers jsonb, "
        "dns_ms int, connect_ms int, tls_ms int, first_byte_ms int"
    )
} AS new
ON CONFLICT (id) DO NOTHING
"""

# One for each (delivery, cycle), however often its death is settled. $1, $2 arrays: dead letter, delivery; $3 the
# least delivery.
INSERT_DEAD_LETTERS: Final = """
INSERT INTO dead_letters (id, kind, reason, tenant, delivery_id, cycle, subscription_id, event_id)
SELECT new.id, 'delivery', d.reason, d.tenant, d.id, d.cycle, d.subscription_id, d.event_id
FROM unnest($1::uuid[], $2::uuid[]) AS new (id, delivery_id)
JOIN deliveries AS d ON d.id = new.delivery_id AND d.id >= $3
WHERE d.status = 'dead'
ON CONFLICT (delivery_id, cycle) DO NOTHING
"""

UNPUBLISHED_DEAD_LETTERS: Final = """
SELECT l.id, l.reason, l.tenant, l.delivery_id, l.cycle, l.subscription_id, l.event_id,
       e.type, e.source, e.external_id
FROM dead_letters AS l LEFT JOIN events AS e ON e.id = l.event_id
WHERE l.kind = 'delivery' AND l.published_at IS NULL ORDER BY l.id LIMIT $1 FOR NO KEY UPDATE OF l SKIP LOCKED
"""

MARK_DEAD_LETTERS_PUBLISHED: Final = """
UPDATE dead_letters SET published_at = clock_timestamp() WHERE id = ANY($1::uuid[])
"""
