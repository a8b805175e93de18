"""`hookhare keys`: the keys of the API's callers, and those that encrypt the secrets at rest.

It works on the database itself, so that there can be a first key, and one when every other is lost. It is not held to
what a tenant's key may hand on: who has the database has everything.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hookhare import process
from infra.settings import MAX_REQUESTS_PER_MIN, read_settings
from schemas.errors import InvalidInput
from schemas.fields import tenant_fault
from schemas.ids import API_KEY, parse_id, public_id
from schemas.scopes import EVERY, Scope

if TYPE_CHECKING:
    import asyncpg

_WIDE_COLUMNS = 200  # without a terminal a table is not cut to 80 columns: somebody pipes it into grep
_PAGE = 200
_MAX_OVERLAP_S = 604_800
_MAX_DAYS = 36_500

keys = typer.Typer(help="Make keys: for callers of the API, and for the secrets at rest.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The id of a key, as `hookhare keys list` shows it.")]


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who or what will use it; shown in lists.")] = "admin",
    tenant: Annotated[
        str | None, typer.Option(help="The only tenant that it sees. Without one it is an admin key, which sees all.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE", help=f"What it may do; give it again for more. All unless said: {', '.join(Scope)}."
        ),
    ] = None,
    expires_in_days: Annotated[
        float | None, typer.Option(help="It ends after so many days. Without, it does not end by itself.")
    ] = None,
    requests_per_min: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_REQUESTS_PER_MIN, help="Its rate limit; the installation's unless said."),
    ] = None,
) -> None:
    """Make a key for the API and print it. It is shown this once and stored nowhere.

    Needs HOOKHARE_DATABASE_URL. Callers send it as `Authorization: Bearer <key>`.
    """
    from hookhare.key_records import record_key
    from infra.store import api_keys

    async def main() -> None:
        scopes, expires_at = _scopes(scope), _end(expires_in_days)
        if tenant is not None and (fault := tenant_fault(tenant)):
            raise InvalidInput.of("--tenant", fault)
        async with _transaction() as conn:
            key, row = await api_keys.create(
                conn,
                name,
                tenant=tenant,
                scopes=scopes,
                expires_at=expires_at,
                rate_per_min=requests_per_min,
            )
            await record_key(conn, "created", after=row)
        whose = "an admin key" if tenant is None else f"a key of the tenant {tenant}"
        _say(f"the key of {row.name!r}, {public_id(API_KEY, row.id)}, {whose}, shown only now:")
        typer.echo(key)

    raise typer.Exit(process.run(main))


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only the keys of this tenant.")] = None,
) -> None:
    """List the keys of the API, newest first, those that have ended too. No key's text is shown.

    Needs HOOKHARE_DATABASE_URL.
    """
    from infra.store import api_keys

    async def main() -> None:
        table = Table("id", "name", "begins", "tenant", "scopes", "ends", "last used", "uses", box=SIMPLE_HEAD)
        after = None
        while True:
            async with _transaction() as conn:
                page = await api_keys.list_page(conn, tenant=tenant, after=after, limit=_PAGE)
            for row in page.rows:
                ends = f"revoked {_moment(row.revoked_at)}" if row.revoked_at is not None else _moment(row.expires_at)
                whose = "(admin)" if row.tenant is None else row.tenant
                scopes, used = " ".join(row.scopes), _moment(row.last_used_at)
                table.add_row(
                    *(public_id(API_KEY, row.id), row.name, row.prefix, whose, scopes, ends, used, str(row.uses))
                )
            if (after := page.next_after) is None:
                break
        Console(width=None if sys.stdout.isatty() else _WIDE_COLUMNS, markup=False).print(table)

    raise typer.Exit(process.run(main))


@keys.command("revoke")
def revoke_key(key_id: KeyId) -> None:
    """End a key of the API at once. It stays in the list.

    Needs HOOKHARE_DATABASE_URL.
    """
    from hookhare.key_records import record_key
    from infra.store import api_keys

    async def main() -> int:
        wanted = parse_id(API_KEY, key_id, field="KEY_ID")
        async with _transaction() as conn:
            before = (await api_keys.lock(conn, [wanted])).get(wanted)
            row = await api_keys.revoke(conn, wanted)
            if row is not None:
                await record_key(conn, "revoked", before=before, after=row)
        _say("hookhare: there is no such key, or it was revoked already" if row is None else f"revoked {row.name!r}")
        return 1 if row is None else 0

    raise typer.Exit(process.run(main))


@keys.command("rotate")
def rotate_key(
    key_id: KeyId,
    overlap_s: Annotated[
        int, typer.Option(min=0, max=_MAX_OVERLAP_S, help="Seconds that the old key goes on for; 0 ends it at once.")
    ] = 86_400,
) -> None:
    """Make a new key of the same rights and print it, shown this once; the old one ends after the overlap.

    Needs HOOKHARE_DATABASE_URL.
    """
    from hookhare.key_records import record_key
    from infra.store import api_keys

    async def main() -> int:
        wanted = parse_id(API_KEY, key_id, field="KEY_ID")
        async with _transaction() as conn:
            row = (await api_keys.lock(conn, [wanted])).get(wanted)
            if row is None or row.has_ended(datetime.now(UTC)) or row.replaced_by is not None:
                _say("hookhare: there is no such key, or it has ended or was rotated already")
                return 1
            key, new, old = await api_keys.rotate(conn, row, overlap_s=overlap_s)
            await record_key(conn, "rotated", before=row, after=old)
            await record_key(conn, "created", after=new)
        _say(
            f"the old key ends at {_moment(old.expires_at)}; the new one, {public_id(API_KEY, new.id)}, shown only now:"
        )
        typer.echo(key)
        return 0

    raise typer.Exit(process.run(main))


@keys.command("new-encryption-key")
def new_encryption_key() -> None:
    """Print a new key for HOOKHARE_ENCRYPTION_KEYS.

    To change the key, put the new one in front of the old one, separated by a comma, and restart everything: the first
    encrypts, all decrypt. Then run `hookhare keys rotate-encryption`, and drop the old one.
    """
    from infra.crypto import new_key

    typer.echo(new_key())


@keys.command("rotate-encryption")
def rotate_encryption() -> None:
    """Encrypt under the first key of HOOKHARE_ENCRYPTION_KEYS all that is stored under another one.

    Needs HOOKHARE_DATABASE_URL. Run it once everything has been restarted with the new key in front; when it has come
    to its end, no older key is needed. It works in small batches beside running servers, and can be stopped at any
    point and run again. It exits with 1 if something is decrypted by none of the keys, and names whose it is.
    """
    from infra.crypto import Vault
    from infra.store import encryption
    from infra.store.store import open_store
    from schemas.ids import SUBSCRIPTION, public_id

    async def main() -> int:
        settings = read_settings()
        vault = Vault.from_settings(settings)
        anew = first = unreadable = 0
        async with open_store(settings) as store:
            await store.check_schema()
            async for batch in encryption.rotate(store, vault):
                anew, first = anew + batch.encrypted_anew, first + batch.under_first_key
                unreadable += len(batch.unreadable)
                for subscription in batch.unreadable:
                    typer.echo(f"decrypted by none of the keys: {public_id(SUBSCRIPTION, subscription)}")
                _say(f"{anew + first + unreadable} subscriptions looked at")
        typer.echo(
            f"{anew} encrypted anew, {first} under the first key already, {unreadable} decrypted by none of them"
        )
        return 1 if unreadable else 0

    raise typer.Exit(process.run(main))


@asynccontextmanager
async def _transaction() -> "AsyncIterator[asyncpg.Connection]":
    """A transaction over the database of the settings, whose schema is this release's."""
    from infra.store.store import open_store

    async with open_store(read_settings()) as store:
        await store.check_schema()
        async with store.transaction() as conn:
            yield conn


def _scopes(given: list[str] | None) -> frozenset[str]:
    unknown = [scope for scope in given or () if scope not in frozenset(Scope)]
    if unknown:
        raise InvalidInput.of("--scope", f"{', '.join(map(ascii, unknown))}: there are {', '.join(Scope)}")
    return frozenset(given or [EVERY])


def _end(days: float | None) -> datetime | None:
    if days is None:
        return None
    if not 0 < days <= _MAX_DAYS:
        raise InvalidInput.of("--expires-in-days", f"must be more than 0, and at most {_MAX_DAYS}")
    return datetime.now(UTC) + timedelta(days=days)


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _say(line: str) -> None:
    """To stderr: stdout is for what another program may want to read."""
    typer.echo(line, err=True)
