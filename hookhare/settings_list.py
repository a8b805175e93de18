"""The list of settings, for `hookhare settings` and `.env.example`, and what is set but is none of them.

It is made from `infra/settings.py` alone.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import structlog
from pydantic import SecretStr

from infra.settings import Settings, unknown_variables

_COMPOSE_ONLY = """\
# Settings of Hookhare. Copy this to .env, which docker compose reads, and change what you need; the processes
# themselves read only their environment. `hookhare settings` shows what is in force. Units stand in the names.

# Needed by docker-compose.yml, and by nothing else. They become part of URLs: letters and digits only.
POSTGRES_PASSWORD=
RABBITMQ_PASSWORD=

# Needed by the API and the dispatcher: made with `hookhare keys new-encryption-key`. Whoever loses it
# loses the secrets of all subscriptions.
HOOKHARE_ENCRYPTION_KEYS=
"""
_NEEDED = frozenset({"encryption_keys"})


@dataclass(frozen=True, slots=True)
class Listed:
    """One setting: its variable, what it is set to when nobody sets it, and what it does, unit included."""

    variable: str
    default: str
    description: str


def listed() -> Iterator[tuple[str, Listed]]:
    """Every setting with its field name, in the order of `Settings`."""
    for name, field in Settings.model_fields.items():
        yield name, Listed(f"HOOKHARE_{name.upper()}", _text(field.default), field.description or "")


def in_force(settings: Settings, name: str) -> str:
    """What a setting is now, as it would be written into the environment; a secret only as whether it is set."""
    value = getattr(settings, name)
    return "(set, not shown)" if isinstance(value, SecretStr) else _text(value)


def log_unknown() -> None:
    """One warning for all HOOKHARE_* variables that are no setting. They may be another release's: no error."""
    if unknown := unknown_variables():
        structlog.get_logger(__name__).warning("settings.unknown", ignored=list(unknown))


def env_example() -> str:
    """The text of `.env.example`."""
    parts = [_COMPOSE_ONLY]
    for name, setting in listed():
        if name not in _NEEDED:
            comment = textwrap.fill(setting.description, 110, initial_indent="# ", subsequent_indent="# ")
            parts.append(f"{comment}\n# {setting.variable}={setting.default}\n")
    return "\n".join(parts)


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case tuple():
            return ",".join(str(part) for part in value)
        case float():
            return f"{value:g}"
        case _:
            return str(value)
