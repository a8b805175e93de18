"""Logging in the tests' own process: plain, and as it was before when a test has set it up itself."""

import logging
from collections.abc import Iterator
from typing import Any, Final

import pytest
import structlog

# Structlog's own default shows the local variables of a traceback: seconds, on a busy machine, for a test that waits.
_PLAIN: Final[list[structlog.typing.Processor]] = [
    structlog.processors.add_log_level,
    structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
]


def pytest_configure() -> None:
    structlog.configure(processors=list(_PLAIN))


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test, or a command that it runs, configures goes with it; no logger keeps it.

    One that did wrote into a stream that was closed long since, and whoever logged had an error.
    """
    configure = structlog.configure

    def forgetting(**options: Any) -> None:
        configure(**{**options, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", forgetting)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        if type(handler).__module__ == "infra.logs":
            root.removeHandler(handler)
    root.setLevel(level)
    structlog.reset_defaults()
    pytest_configure()
