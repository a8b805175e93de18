"""Stands where hints go when a test asks what the rows alone say."""

from collections.abc import Sequence

from infra.broker.base import Outgoing
from schemas.errors import BrokerError, BrokerUnavailable


class SilentBroker:
    """Takes every hint and delivers none: what is left is what the rows say. Not a broker, and no test of one."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.refuses = False

    async def publish_many(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> Sequence[BrokerError | None]:
        if self.refuses:
            return [BrokerUnavailable("away")] * len(outgoing)
        self.sent += outgoing
        return [None] * len(outgoing)
