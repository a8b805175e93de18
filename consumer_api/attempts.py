"""`/v1/attempts`: every POST and what came of it, over all deliveries."""

from functools import partial

from aiohttp import web

from consumer_api.answers import json_answer
from consumer_api.context import STORE
from consumer_api.exporting import LIST_ERRORS, exported, list_answer
from consumer_api.outcomes import done
from consumer_api.presentation import attempt_view
from consumer_api.queries import AttemptsQuery
from consumer_api.reading import path_id, read_query
from consumer_api.route import Route
from consumer_api.views import AttemptView
from infra.store import attempts
from schemas.ids import ATTEMPT
from schemas.scopes import Scope


def routes() -> list[Route]:
    read = Scope.DELIVERIES_READ
    return [
        Route(
            method="GET",
            path="/v1/attempts",
            handler=list_attempts,
            scope=read,
            query=AttemptsQuery,
            answers={200: exported(AttemptView)},
            errors=LIST_ERRORS,
        ),
        Route(method="GET", path="/v1/attempts/{attempt_id}", handler=get, scope=read, answers={200: AttemptView}),
    ]


async def list_attempts(request: web.Request) -> web.StreamResponse:
    """List attempts, the newest first."""
    query = read_query(request, AttemptsQuery)
    read = partial(attempts.list_page, wanted=query.wanted())
    return await list_answer(request, query, read, attempt_view, AttemptView, name="attempts")


async def get(request: web.Request) -> web.Response:
    """Get an attempt."""
    attempt_id = path_id(request, ATTEMPT, "attempt_id")
    async with request.app[STORE].connection() as conn:
        row = done(await attempts.get(conn, attempt_id), "attempt")
    return json_answer(attempt_view(row))
