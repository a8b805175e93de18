"""Audit rows are only added, and read by tenant, key, target and action; what the command changes has no key."""

from alembic import op

revision = "0015"
down_revision = "0014"

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE audit_log ALTER COLUMN key_id DROP NOT NULL",
    "ALTER TABLE audit_log ALTER COLUMN request_id DROP NOT NULL",
    "CREATE INDEX audit_log_by_tenant ON audit_log (tenant, id)",
    "CREATE INDEX audit_log_by_key ON audit_log (key_id, id)",
    "CREATE INDEX audit_log_by_target ON audit_log (target, id)",
    "CREATE INDEX audit_log_by_action ON audit_log (action, id)",
    # Whoever forgets says in its transaction how old the rows are at least that it deletes; a younger one stops it all,
    # and so does a row of the last day, whatever is said. Who owns the table can drop the triggers: what these hold
    # against is mistakes, and who gets at the database by our own statements.
    """
    CREATE FUNCTION audit_log_is_only_added_to() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        age_s float8 := nullif(current_setting('hookhare.forget_audit_after_s', true), '')::float8;
    BEGIN
        IF TG_OP = 'DELETE' AND age_s >= 86400
           AND OLD.created_at < statement_timestamp() - make_interval(secs => age_s) THEN
            RETURN OLD;
        END IF;
        RAISE EXCEPTION 'audit_log is only added to' USING ERRCODE = 'insufficient_privilege';
    END $$
    """,
    """
    CREATE TRIGGER audit_log_rows BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_log_is_only_added_to()
    """,
    """
    CREATE TRIGGER audit_log_whole BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_only_added_to()
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
