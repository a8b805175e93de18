"""The SQL beside the hot path: what the keeper, the reconciler and the daily upkeep do, and what the gauges show.

The conventions are those of `statements.py`.
"""

from typing import Final

from infra.store.statements import AMONG_PICKED, PACED_ANEW

# --- Keeper ----------------------------------------------------------------------------------------------------

# `identity` tells a letter that comes twice from another one.
KEEP_DEAD_LETTERS: Final = """
INSERT INTO dead_letters (id, kind, reason, tenant, identity, message_id, routing_key, body, headers)
SELECT * FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[], $9::jsonb[]
)
ON CONFLICT (identity) DO NOTHING
"""

# Past retention, $1 in seconds. $2 how many. Their ids begin with the time that they were made at.
FORGET_DEAD_LETTERS: Final = """
DELETE FROM dead_letters WHERE id IN (
    SELECT id FROM dead_letters ORDER BY id LIMIT $2
) AND created_at < statement_timestamp() - make_interval(secs => $1)
RETURNING id
"""

# The same of replays, which are small. One that still runs is not touched. $1 in seconds; $2 how many.
FORGET_REPLAYS: Final = """
DELETE FROM replays WHERE id IN (
    SELECT id FROM replays WHERE state <> 'running' ORDER BY id LIMIT $2
) AND ended_at < statement_timestamp() - make_interval(secs => $1)
RETURNING id
"""

# The audit log past its retention, $1 in seconds; $2 how many. In a transaction that has said it by `MAY_FORGET_AUDIT`,
# as text: without, a trigger refuses (v0015). Their ids begin with the time that they were made at.
MAY_FORGET_AUDIT: Final = "SELECT set_config('hookhare.forget_audit_after_s', $1::text, true)"
FORGET_AUDIT: Final = """
DELETE FROM audit_log WHERE id IN (
    SELECT id FROM audit_log ORDER BY id LIMIT $2
) AND created_at < statement_timestamp() - make_interval(secs => $1)
RETURNING id
"""

# Idempotency keys past their time, $1 in seconds; $2 how many. One that is just used is not waited for; one in flight,
# which may be of a request that began anew at the end of the time, is kept.
FORGET_IDEMPOTENCY_KEYS: Final = """
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys
    WHERE created_at < statement_timestamp() - make_interval(secs => $1)
      AND (claimed_at IS NULL OR claimed_at < statement_timestamp() - make_interval(secs => $1))
    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))
RETURNING api_key_id
"""

# --- Reconciler ------------------------------------------------------------------------------------------------
# The rows are picked in any order: what is locked is skipped, so nobody waits, and an order would cost an index.

# Only who has itself renewed without a gap for the liveness time may judge. $2 liveness in seconds. Part of the
# statement that acts on it, by the same moment: who was stopped between a question and its act would judge by an old
# answer, and, going on first after a time in which all stood still, take every other one for dead.
_MAY_JUDGE: Final = """EXISTS (SELECT 1 FROM dispatchers AS judge WHERE judge.id = $1
                               AND judge.renewed_at > statement_timestamp() - make_interval(secs => $2)
                               AND judge.steady_since < statement_timestamp() - make_interval(secs => $2))"""

# Rows whose claim is dead, or older than the cap: unfinished ones are held, the fence unchanged, so that a late
# owner's outcome still counts until somebody claims anew. $2 liveness, $3 claim cap, both in seconds; $4 how many.
# A row that was claimed anew since the statement began is looked at as it is now, its owner as it was then: not judged.
FREE_DEAD_CLAIMS: Final = f"""
WITH picked AS (
    SELECT d.id FROM deliveries AS d
    WHERE {_MAY_JUDGE} AND d.claimed_by IS NOT NULL AND d.claimed_at < statement_timestamp()
      AND (d.claimed_at < statement_timestamp() - make_interval(secs => $3)
           OR NOT EXISTS (SELECT 1 FROM dispatchers AS x WHERE x.id = d.claimed_by
                          AND x.renewed_at > statement_timestamp() - make_interval(secs => $2)))
    LIMIT $4 FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE deliveries AS d SET
    status = CASE WHEN d.status IN ('pending', 'retrying') THEN 'held' ELSE d.status END,
    reason = CASE WHEN d.status IN ('pending', 'retrying', 'held') THEN 'its dispatcher died' ELSE d.reason END,
    next_attempt_at = NULL, hint_due_at = NULL, claimed_by = NULL, claimed_at = NULL, updated_at = clock_timestamp()
FROM picked WHERE {AMONG_PICKED}
RETURNING d.id, d.subscription_id, d.status
"""

# Retries whose hint is lost: past the expiry of the rung it was put on, plus grace. $1 grace in seconds; $2 how many.
HOLD_OVERDUE: Final = f"""
WITH picked AS (
    SELECT id FROM deliveries
    WHERE status = 'retrying' AND claimed_by IS NULL
      AND hint_due_at < statement_timestamp() - make_interval(secs => $1)
    LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE deliveries AS d SET status = 'held', next_attempt_at = NULL, hint_due_at = NULL, updated_at = clock_timestamp()
FROM picked WHERE {AMONG_PICKED}
RETURNING d.id, d.subscription_id, d.status
"""


def _end_orphaned(status: str) -> str:
    """Waiting rows of this status of subscriptions that are disabled or deleted: ended with the reason. $1 how many.

    One statement for each status, because each has a partial index by subscription.
    """
    return f"""
WITH picked AS (
    SELECT waiting.id, s.deleted_at IS NOT NULL AS deleted, s.state_reason
    FROM subscriptions AS s CROSS JOIN LATERAL (
        SELECT id FROM deliveries WHERE subscription_id = s.id AND status = '{status}'
        LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
    ) AS waiting
    WHERE s.state = 'disabled' OR s.deleted_at IS NOT NULL
    LIMIT $1
)
UPDATE deliveries AS d SET
    status = CASE WHEN picked.deleted THEN 'canceled' ELSE 'dead' END,
    reason = CASE WHEN picked.deleted THEN 'the subscription was deleted'
                  ELSE coalesce(picked.state_reason, 'the subscription is disabled') END,
    next_attempt_at = NULL, hint_due_at = NULL, updated_at = clock_timestamp()
FROM picked WHERE {AMONG_PICKED}
RETURNING d.id, d.status
"""


END_ORPHANED: Final = (_end_orphaned("held"), _end_orphaned("retrying"))

# Open endpoints that have held rows all the same.
OPEN_WITH_BACKLOG: Final = """
SELECT s.id FROM subscriptions AS s
WHERE s.mode = 'open' AND s.deleted_at IS NULL
  AND EXISTS (SELECT 1 FROM deliveries AS d WHERE d.subscription_id = s.id AND d.status = 'held')
"""

# Leases of the dead. $2 liveness in seconds.
FREE_DEAD_LEASES: Final = f"""
UPDATE subscriptions AS s SET feeder = NULL, {PACED_ANEW}
WHERE {_MAY_JUDGE} AND s.mode = 'held' AND s.feeder IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM dispatchers AS x WHERE x.id = s.feeder
                  AND x.renewed_at > statement_timestamp() - make_interval(secs => $2))
RETURNING s.id
"""

# Roles of the dead. $2 liveness in seconds. One that is worked under just now is passed over.
FREE_DEAD_ROLES: Final = f"""
UPDATE roles SET holder = NULL WHERE name IN (
    SELECT name FROM roles AS r
    WHERE {_MAY_JUDGE} AND r.holder IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM dispatchers AS x WHERE x.id = r.holder
                      AND x.renewed_at > statement_timestamp() - make_interval(secs => $2))
    FOR NO KEY UPDATE SKIP LOCKED
)
RETURNING name
"""

# Sessions of ours that have waited for $1 seconds, amid a statement, for a client that stands still. The server itself
# ends those that are idle in a transaction (`idle_in_transaction_session_timeout`), but not these two, which pass for
# active, and which `statement_timeout` does not reach:
# - The client stopped between preparing a statement and executing it: asyncpg sends no Sync in between (ClientRead).
# - The client stopped amid a large answer, as the events of its claims, or the index's subscriptions (ClientWrite).
# They would keep their locks for as long as the process stands still: on an event's key, and nobody could admit that
# event, nor what came with it; on the subscriptions' version, and nobody could change a subscription.
END_STALLED_SESSIONS: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user
  AND (application_name = 'hookhare' OR application_name LIKE 'hookhare %')
  AND state = 'active' AND wait_event IN ('ClientRead', 'ClientWrite')
  AND state_change < statement_timestamp() - make_interval(secs => $1)
"""

# --- What the gauges show --------------------------------------------------------------------------------------

# Counts stop at 10,000: a gauge is not worth a scan of a million rows.
BACKLOG_VIEW: Final = """
SELECT (SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE status = 'held' LIMIT 10000) AS f) AS held,
       (SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE status = 'retrying' LIMIT 10000) AS f) AS retrying,
       (SELECT extract(epoch FROM clock_timestamp() - min(claimed_at))::float8
        FROM deliveries WHERE claimed_by IS NOT NULL) AS oldest_pending_s
"""
