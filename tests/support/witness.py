"""A witness of every change of a delivery's row, in the database of the test: what ended stays as it ended.

A trigger writes down what must never happen, however the fleet is stopped or killed, and counts how often each row is
written. It sees what the rows no longer show when all is done: a row that was revived and ended again.
"""

from collections.abc import Sequence

import asyncpg

from tests.support.system import System

_INSTALL = """
CREATE TABLE IF NOT EXISTS witnessed (delivery uuid, what text, before jsonb, after jsonb);
CREATE TABLE IF NOT EXISTS writes (delivery uuid PRIMARY KEY, number int NOT NULL);
CREATE OR REPLACE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.cycle = NEW.cycle AND OLD.status IN ('delivered', 'dead', 'canceled')
       AND (OLD.status, OLD.attempts, OLD.reason) IS DISTINCT FROM (NEW.status, NEW.attempts, NEW.reason) THEN
        INSERT INTO witnessed VALUES (OLD.id, 'changed after its end', to_jsonb(OLD), to_jsonb(NEW));
    END IF;
    IF NEW.cycle <> OLD.cycle
       AND (OLD.status NOT IN ('delivered', 'dead', 'canceled') OR NEW.cycle <> OLD.cycle + 1) THEN
        INSERT INTO witnessed VALUES (OLD.id, 'replayed before its end', to_jsonb(OLD), to_jsonb(NEW));
    END IF;
    IF NEW.cycle = OLD.cycle AND NEW.attempts < OLD.attempts OR NEW.fence < OLD.fence THEN
        INSERT INTO witnessed VALUES (OLD.id, 'counted backwards', to_jsonb(OLD), to_jsonb(NEW));
    END IF;
    IF NEW.fence <> OLD.fence AND OLD.claimed_by IS NOT NULL THEN
        INSERT INTO witnessed VALUES (OLD.id, 'claimed from its owner', to_jsonb(OLD), to_jsonb(NEW));
    END IF;
    IF NEW.fence <> OLD.fence AND NOT EXISTS (
        SELECT FROM dispatchers AS d
        WHERE d.id = NEW.claimed_by AND d.renewed_at > clock_timestamp() - make_interval(secs => TG_ARGV[0]::float8)
    ) THEN
        INSERT INTO witnessed VALUES (OLD.id, 'claimed by who may be taken for dead', to_jsonb(OLD), to_jsonb(NEW));
    END IF;
    INSERT INTO writes AS w VALUES (OLD.id, 1) ON CONFLICT (delivery) DO UPDATE SET number = w.number + 1;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER witness AFTER UPDATE ON deliveries FOR EACH ROW EXECUTE FUNCTION witness({liveness_s});
"""


async def call_witness(system: System, *, liveness_s: float) -> None:
    """From now on every change of a delivery's row is looked at. Called again, with another liveness time."""
    connection = await asyncpg.connect(system.database_url)
    try:
        await connection.execute(_INSTALL.format(liveness_s=liveness_s))
    finally:
        await connection.close()


async def witnessed(system: System) -> Sequence[str]:
    """What must not have happened, a line each."""
    rows = await system.fetch("SELECT delivery, what, before, after FROM witnessed")
    return [f"{row['delivery']} {row['what']}: {row['before']} -> {row['after']}" for row in rows]
