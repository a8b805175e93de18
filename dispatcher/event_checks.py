"""What admission asks the catalogue of event types, inside its transaction.

Events count by the catalogue as it is when they are admitted, so that a schema holds for every event that was published
after its 201. One that the API took just before that is buried too: its dead letter says why, and can be replayed once
the schema is another one, as it is checked again then.
"""

from collections.abc import Sequence
from typing import Final

import asyncpg
import structlog

from infra.settings import Settings
from infra.store import history
from infra.store.catalogue import Catalogue
from infra.telemetry import Telemetry
from schemas.errors import Problem
from schemas.events import Event

log = structlog.get_logger(__name__)

_LONGEST_S: Final = 0.25  # of checks in one transaction, and the last one of them


class EventChecks:
    """Checks events in batches."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self._catalogue = Catalogue(settings)
        self._dedupe_window_s = settings.dedupe_window_s
        self._metrics = telemetry.metrics

    async def refused(
        self, connection: asyncpg.Connection, version: int, events: Sequence[Event]
    ) -> tuple[int, dict[int, Problem]]:
        """How many of them, from the first on, it has looked at; and of these, those that are not to be admitted, by
        their place, and why.

        The rest is for the next transaction: this one keeps the catalogue and all subscriptions from changing.
        `version` is the subscriptions' in this transaction. One that was admitted before is none of them, whatever the
        catalogue says by now: it is a duplicate.
        """
        if not self._catalogue.asked:
            return len(events), {}
        if self._catalogue.version < version:
            await self._catalogue.refresh(connection)
        judged = await self._catalogue.judge(events, within_s=_LONGEST_S)
        if not (found := judged.verdicts):
            return judged.looked_at, {}
        known = await history.known_events(
            connection, [_identity(events[place]) for place in found], window_s=self._dedupe_window_s
        )
        fresh = {place: one for place, one in found.items() if _identity(events[place]) not in known}
        for place, one in fresh.items():
            if not one.refused:
                log.warning("event.invalid", event_type=events[place].type, reason=one.problem.message, result="warned")
                self._metrics.events_invalid.add(1, {"result": "warned"})
        return judged.looked_at, {place: one.problem for place, one in fresh.items() if one.refused}


def _identity(event: Event) -> tuple[str, str, str]:
    return event.tenant, event.source, event.external_id
