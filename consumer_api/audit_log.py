"""`/v1/audit-log`: who changed what, when and from where."""

from functools import partial

from aiohttp import web

from consumer_api.answers import json_answer
from consumer_api.audit_views import AuditEntryView, AuditLogQuery, audit_entry_view
from consumer_api.context import CALLER, STORE
from consumer_api.exporting import LIST_ERRORS, exported, list_answer
from consumer_api.outcomes import done
from consumer_api.reading import path_id, read_query
from consumer_api.route import Route
from infra.store import audit
from schemas.ids import AUDIT_ENTRY
from schemas.scopes import Scope


def routes() -> list[Route]:
    read = Scope.AUDIT_READ
    return [
        Route(
            method="GET",
            path="/v1/audit-log",
            handler=list_entries,
            scope=read,
            query=AuditLogQuery,
            answers={200: exported(AuditEntryView)},
            errors=LIST_ERRORS,
        ),
        Route(
            method="GET",
            path="/v1/audit-log/{audit_entry_id}",
            handler=get,
            scope=read,
            answers={200: AuditEntryView},
        ),
    ]


async def list_entries(request: web.Request) -> web.StreamResponse:
    """List changes, the newest first. A tenant's key sees those of what is its tenant's."""
    query, viewer = read_query(request, AuditLogQuery), request[CALLER].tenant
    read = partial(audit.list_page, wanted=query.wanted(viewer))
    view = partial(audit_entry_view, viewer=viewer)
    return await list_answer(request, query, read, view, AuditEntryView, name="audit-log")


async def get(request: web.Request) -> web.Response:
    """Get a change, with what was before and after."""
    entry_id = path_id(request, AUDIT_ENTRY, "audit_entry_id")
    async with request.app[STORE].connection() as conn:
        row = done(await audit.get(conn, entry_id), "audit entry")
    return json_answer(audit_entry_view(row, viewer=request[CALLER].tenant))
