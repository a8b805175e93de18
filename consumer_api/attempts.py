"""`/v1/attempts`: every POST and what came of it, over all deliveries."""

from aiohttp import web

from consumer_api.answers import json_answer, page_answer
from consumer_api.context import STORE
from consumer_api.errors import ErrorCode
from consumer_api.outcomes import done
from consumer_api.presentation import attempt_view
from consumer_api.queries import AttemptsQuery
from consumer_api.reading import path_id, read_query
from consumer_api.route import Route
from consumer_api.searching import searching
from consumer_api.views import AttemptView, Page
from infra.store import attempts
from schemas.ids import ATTEMPT
from schemas.scopes import Scope


def routes() -> list[Route]:
    read, broad = Scope.DELIVERIES_READ, (ErrorCode.QUERY_TOO_BROAD,)
    return [
        Route(method="GET", path="/v1/attempts", handler=list_attempts, scope=read, query=AttemptsQuery, errors=broad),
        Route(method="GET", path="/v1/attempts/{attempt_id}", handler=get, scope=read),
    ]


async def list_attempts(request: web.Request) -> web.Response:
    query = read_query(request, AttemptsQuery)
    async with searching(request) as conn:
        page = await attempts.list_page(conn, query.wanted(), after=query.cursor, limit=query.limit)
    return page_answer(page, attempt_view)


async def get(request: web.Request) -> web.Response:
    attempt_id = path_id(request, ATTEMPT, "attempt_id")
    async with request.app[STORE].connection() as conn:
        row = done(await attempts.get(conn, attempt_id), "attempt")
    return json_answer(attempt_view(row))
