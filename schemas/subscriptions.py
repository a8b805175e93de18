"""What a subscription is, and what a caller may ask of it."""

from enum import StrEnum


class State(StrEnum):
    """Enabled subscriptions are delivered to, paused ones keep their backlog, disabled ones have none."""

    ENABLED = "enabled"
    PAUSED = "paused"
    DISABLED = "disabled"
