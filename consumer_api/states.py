"""`POST /v1/subscriptions/{id}/pause`, `/resume`, `/enable`, `/disable`: its state, by commands.

The same as a PATCH of `state`, except that pausing and resuming never touch what is disabled: whoever resumes after a
maintenance does not revive an endpoint that has meanwhile said 410. Each may be repeated; the first reason stays.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from consumer_api.answers import json_answer
from consumer_api.changing import locked, record, shown, tagged
from consumer_api.context import STORE
from consumer_api.errors import ErrorCode, conflict
from consumer_api.route import Route
from consumer_api.subscription_views import SubscriptionView
from infra.store import subscriptions
from infra.store.subscriptions import STATE_REASONS
from schemas.scopes import Scope
from schemas.subscriptions import State


@dataclass(frozen=True, slots=True)
class _Command:
    """The state that it leads to, whether also from disabled, and what it does, for who reads the API's document."""

    to: State
    from_disabled: bool
    words: str


_COMMANDS: Final = {
    "pause": _Command(
        State.PAUSED, from_disabled=False, words="Pause a subscription: its deliveries wait in its backlog."
    ),
    "resume": _Command(
        State.ENABLED,
        from_disabled=False,
        words="Resume a paused subscription: its backlog is fed at the pace that its endpoint takes.",
    ),
    "enable": _Command(State.ENABLED, from_disabled=True, words="Enable a subscription, also one that was disabled."),
    "disable": _Command(
        State.DISABLED,
        from_disabled=True,
        words="Disable a subscription: what waited for it is given up, and nothing more is taken for it.",
    ),
}
_DONE: Final = {"pause": "paused", "resume": "resumed", "enable": "enabled", "disable": "disabled"}


def routes() -> list[Route]:
    one = "/v1/subscriptions/{subscription_id}"
    return [
        Route(
            method="POST",
            path=f"{one}/{name}",
            handler=_handler(name, command),
            scope=Scope.SUBSCRIPTIONS_WRITE,
            answers={200: SubscriptionView},
            errors=(*(() if command.from_disabled else (ErrorCode.CONFLICT,)), ErrorCode.PRECONDITION_FAILED),
        )
        for name, command in _COMMANDS.items()
    ]


def _handler(name: str, command: _Command) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        async with request.app[STORE].transaction() as conn:
            before = row = await locked(request, conn)
            if row.state == State.DISABLED and not command.from_disabled:
                raise conflict(f"the subscription is disabled ({row.state_reason}); enable it to {name} it")
            if row.state != command.to:
                changed = replace(row, state=command.to, state_reason=STATE_REASONS[command.to])
                row = await subscriptions.save(conn, changed)
                await record(request, conn, _DONE[name], before, row)
        return json_answer(shown(request, row), headers=tagged(row))

    handle.__name__ = name
    handle.__doc__ = f"{command.words} In force for every event that is published from now on."
    return handle
