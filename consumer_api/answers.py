"""Answers in JSON."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from consumer_api.cursors import encode_cursor
from consumer_api.errors import Fault, error_body
from infra.store.query import Page, Row


def json_answer(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """`body` as JSON; moments in UTC end in Z, and `orjson.Fragment` is spliced in as it is."""
    return web.Response(
        body=orjson.dumps(body, option=orjson.OPT_UTC_Z),
        status=status,
        content_type="application/json",
        headers=headers,
    )


def error_answer(fault: Fault, *, request_id: str) -> web.Response:
    body = error_body(fault, now=datetime.now(UTC), request_id=request_id)
    return json_answer(body, status=fault.status, headers=dict(fault.headers))


def page_answer(page: Page[Row], view: Callable[[Row], Mapping[str, Any]]) -> web.Response:
    """Part of a list, and the cursor that asks for the next part."""
    return json_answer(
        {
            "data": [view(row) for row in page.rows],
            "has_more": page.next_after is not None,
            "next_cursor": None if page.next_after is None else encode_cursor(page.next_after),
        }
    )
