"""The pool and its error border, against a real server."""

import asyncio
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from infra.settings import read_settings
from infra.store import locks
from infra.store.store import Store, open_store, store_errors
from schemas.errors import ConfigurationError, SchemaMismatch, StoreUnavailable
from tests.support.postgres import Postgres

DEADLINE_S = 20


async def test_a_transaction_commits_or_rolls_back(store: Store) -> None:
    async with store.transaction() as conn:
        await conn.execute("CREATE TABLE things (id int)")

    async def insert_and_fail() -> None:
        async with store.transaction() as conn:
            await conn.execute("INSERT INTO things VALUES (1)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await insert_and_fail()
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM things") == 0


async def test_jsonb_goes_in_and_out_as_objects(store: Store) -> None:
    value = {"text": "ü\n", "list": [1, None, True]}
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT $1::jsonb", value) == value
        assert await conn.fetchval("SELECT ($1::jsonb)->>'text'", value) == "ü\n"


async def test_mistakes_stay_what_they_are(store: Store) -> None:
    with pytest.raises(asyncpg.UndefinedColumnError):
        async with store.transaction() as conn:
            await conn.execute("SELECT nonsense FROM events")
    with pytest.raises(asyncpg.UniqueViolationError):
        async with store.transaction() as conn:
            await conn.execute("INSERT INTO subscription_version (version) VALUES (1)")


async def test_a_swallowed_error_does_not_pass_for_a_commit(store: Store) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK here, and asyncpg takes that for success."""

    async def go_on_after_an_error() -> None:
        async with store.transaction() as conn:
            await conn.execute("UPDATE subscription_version SET version = 7")
            with suppress(asyncpg.UniqueViolationError):
                await conn.execute("INSERT INTO subscription_version (version) VALUES (1)")

    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await go_on_after_an_error()
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT version FROM subscription_version") == 0


async def test_a_savepoint_may_fail_alone(store: Store) -> None:
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscription_version SET version = 7")
        with pytest.raises(asyncpg.UniqueViolationError):
            async with conn.transaction():
                await conn.execute("INSERT INTO subscription_version (version) VALUES (1)")
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT version FROM subscription_version") == 7


async def test_a_deadlock_is_unavailable_to_one_and_passes_for_the_other(store: Store) -> None:
    async with store.transaction() as conn:
        await conn.execute("CREATE TABLE pair (id int PRIMARY KEY); INSERT INTO pair VALUES (1), (2)")
    both_hold_one = asyncio.Barrier(2)

    async def take(first: int, second: int) -> None:
        async with store.transaction() as conn:
            await conn.execute("SELECT FROM pair WHERE id = $1 FOR UPDATE", first)
            await both_hold_one.wait()
            await conn.execute("SELECT FROM pair WHERE id = $1 FOR UPDATE", second)

    results = await asyncio.wait_for(asyncio.gather(take(1, 2), take(2, 1), return_exceptions=True), DEADLINE_S)
    failed = [result for result in results if result is not None]
    assert len(failed) == 1
    assert isinstance(failed[0], StoreUnavailable)


async def test_what_takes_too_long_is_unavailable(database_url: str) -> None:
    async with open_store(read_settings(database_url=database_url, database_timeout_s=0.5, database_pool=1)) as store:
        with pytest.raises(StoreUnavailable):  # a statement
            async with store.transaction() as conn:
                await conn.execute("SELECT pg_sleep(30)")
        async with store.transaction() as conn:
            await locks.take(conn, locks.Lock.MAINTENANCE)
            with pytest.raises(StoreUnavailable):  # a connection
                async with store.connection():
                    pass
            async with open_store(read_settings(database_url=database_url, database_timeout_s=0.5)) as other:
                with pytest.raises(StoreUnavailable, match="lock timeout"):  # a lock
                    async with other.transaction() as waiting:
                        await locks.take(waiting, locks.Lock.MAINTENANCE)
        await store.check()


async def test_a_cancelled_task_leaves_as_cancelled_whatever_the_driver_says() -> None:
    """asyncpg can lose a cancellation over an error of its own; a loop that goes on after errors would never end."""

    async def lose_the_cancellation() -> None:
        with store_errors():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise TimeoutError from None

    task = asyncio.create_task(lose_the_cancellation())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_inside_is_not_taken_for_a_cancellation() -> None:
    with pytest.raises(StoreUnavailable), store_errors():
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)


async def test_a_cancelled_task_gives_its_connection_back_rolled_back(database_url: str) -> None:
    async with open_store(read_settings(database_url=database_url, database_pool=1)) as store:
        for delay_s in (0, 0.001, 0.005, 0.02, 0.1):
            task = asyncio.create_task(_raise_version_slowly(store))
            await asyncio.sleep(delay_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with store.connection() as conn:
            assert await conn.fetchval("SELECT version FROM subscription_version") == 0


async def _raise_version_slowly(store: Store) -> None:
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscription_version SET version = 1")
        await conn.execute("SELECT pg_sleep(3)")


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_the_pool_survives_a_restart_of_the_server(own_postgres: Postgres, end: str) -> None:
    dsn = own_postgres.dsn(await own_postgres.create_database())
    async with open_store(read_settings(database_url=dsn, database_pool=3)) as store:
        async with store.connection(), store.connection(), store.connection():
            pass  # three connections are open when the server goes

        async def lose_the_server() -> None:
            async with store.transaction() as conn:
                await asyncio.to_thread(getattr(own_postgres, end))
                await conn.execute("SELECT 1")

        with pytest.raises(StoreUnavailable):
            await lose_the_server()
        with pytest.raises(StoreUnavailable):
            await store.check()
        await asyncio.to_thread(own_postgres.start)
        await asyncio.gather(*(store.check() for _ in range(6)))


async def test_a_socket_and_tcp_are_the_same_store(postgres: Postgres, database_url: str) -> None:
    database = urlsplit(database_url).path[1:]
    for dsn in (postgres.dsn(database), postgres.tcp_dsn(database)):
        async with open_store(read_settings(database_url=dsn)) as store:
            await store.check()


async def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    for dsn in (f"postgresql://postgres@/postgres?host={tmp_path}", "postgresql://postgres@127.0.0.1:1/postgres"):
        with pytest.raises(StoreUnavailable):
            async with open_store(read_settings(database_url=dsn)):
                pass


@pytest.mark.parametrize("url", [None, "mysql://user:hush@host/db", "postgresql://user:hush@[::1/db"])
async def test_a_url_that_is_none_of_ours_names_the_setting_and_not_the_password(url: str | None) -> None:
    with pytest.raises(ConfigurationError, match="HOOKHARE_DATABASE_URL") as caught:
        async with open_store(read_settings(database_url=url)):
            pass
    assert "hush" not in str(caught.value)


async def test_a_schema_that_is_older_or_none_is_refused_at_any_time_a_newer_one_at_the_start(store: Store) -> None:
    await store.check_schema()
    await _set_revision(store, "9999")
    await store.check()
    with pytest.raises(SchemaMismatch, match="9999, newer than this release's"):
        await store.check_schema()
    await _set_revision(store, "0000")
    for check in (store.check, store.check_schema):
        with pytest.raises(SchemaMismatch, match=r"0000, older than .* run `hookhare migrate`"):
            await check()
    async with store.connection() as conn:
        await conn.execute("DROP TABLE alembic_version")
    for check in (store.check, store.check_schema):
        with pytest.raises(SchemaMismatch, match="no schema yet: run `hookhare migrate`"):
            await check()


async def _set_revision(store: Store, revision: str) -> None:
    async with store.transaction() as conn:
        await conn.execute("UPDATE alembic_version SET version_num = $1", revision)


async def test_a_key_outside_all_partitions_is_said_and_not_swallowed(store: Store) -> None:
    with pytest.raises(StoreUnavailable, match="no partition"):
        async with store.transaction() as conn:
            await conn.execute(
                "INSERT INTO events (id, tenant, source, external_id, type, time, data)"
                " VALUES ('00000000-0000-8000-8000-000000000000', 't', 's', 'e', 'y', now(), '')"
            )


async def test_a_change_waits_for_admissions_and_they_see_it(store: Store) -> None:
    """The promise behind "an event published after the answer to a change sees it"."""
    changed = asyncio.Event()

    async def change() -> int:
        async with store.transaction() as conn:
            version = await locks.change_subscriptions(conn)
            changed.set()
            return version

    async with store.transaction() as admission:
        await locks.share_subscriptions(admission)
        async with store.transaction() as another:
            await locks.share_subscriptions(another)  # admissions do not wait for each other
        changing = asyncio.create_task(change())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(changed.wait(), 0.2)
        assert await admission.fetchval("SELECT version FROM subscription_version") == 0

    async with store.transaction() as later:
        await locks.share_subscriptions(later)
        assert await later.fetchval("SELECT version FROM subscription_version") == 1
    assert await changing == 1
