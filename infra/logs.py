"""Structured logs: one JSON object a line, or lines for a person, on standard error.

What libraries log through `logging` comes out in the same form, from warnings up. Exceptions are rendered without the
values of local variables. The last step hides what looks like a secret, wherever in a line it stands; that is a net
under the rule that nobody logs one, not a replacement for it.
"""

import asyncio
import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from infra.settings import Settings

# A Standard Webhooks secret, and the password of a URL.
# Each begins with a literal, which the search skips to.
_KEY: Final = re.compile(rb"whs(ec|k)_[A-Za-z0-9+/_=-]+")
_PASSWORD: Final = re.compile(rb"://([^\s/:@\"']*):[^\s/@\"']+@")
# A collector cuts long lines anywhere, and what is left is no JSON. So of a longer line, each value is cut.
LONG_LINE_BYTES: Final = 16_384
CUT_CHARS: Final = 2_000
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(settings: Settings, stream: TextIO | None = None) -> None:
    """Set up logging for the process. `stream` (standard error) must have a byte stream under it."""
    text = stream if stream is not None else sys.stderr
    out = cast(BinaryIO, _FlushedOnceATurn(text.buffer))
    level = structlog.processors.add_log_level
    processors: list[Processor]
    if settings.log_format == "console":
        processors = [level, structlog.processors.TimeStamper(fmt="iso", utc=True), _console(colors=text.isatty())]
    else:
        processors = [level, _stamp, structlog.processors.format_exc_info, _render_json]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.BytesLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    _route_libraries(out, processors)


class _FlushedOnceATurn:
    """What is written in one turn of the event loop goes out together, at its end.

    A dispatcher writes a line for every delivery, for hundreds in one turn: a system call for each was 3 % of its CPU.
    Who is killed loses the lines of that turn.
    """

    def __init__(self, out: BinaryIO) -> None:
        self.write = out.write
        self._out = out
        self._loop: asyncio.AbstractEventLoop | None = None  # the one in which it will be flushed

    def flush(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no turn to wait for
            self._out.flush()
            return
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._loop = None
        self._out.flush()


def _route_libraries(out: BinaryIO, processors: list[Processor]) -> None:
    root = logging.getLogger()
    for handler in [it for it in root.handlers if isinstance(it, _Routed)]:
        root.removeHandler(handler)
    root.addHandler(_Routed(out, processors))
    root.setLevel(logging.WARNING)


class _Routed(logging.Handler):
    """Sends a library's record through the same processors as our own lines."""

    def __init__(self, out: BinaryIO, processors: list[Processor]) -> None:
        super().__init__()
        self._write = structlog.BytesLogger(out).msg
        self._processors = processors

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line: Any = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                line["exc_info"] = record.exc_info
            for process in self._processors:
                line = process(None, record.levelname.lower(), line)
            self._write(line)
        except structlog.DropEvent:  # no Exception: how a processor says that there is no line
            return
        except Exception:  # noqa: BLE001 a log line must not break what it tells of
            self.handleError(record)


def _stamp(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    line["timestamp"] = datetime.now(UTC)  # orjson writes it out, in a tenth of the time that isoformat takes
    return line


def _render_json(_: WrappedLogger, __: str, line: EventDict) -> bytes:
    text = _as_json(line)
    # Escaped, a character may take six bytes: then each value has its share.
    for limit_chars in (CUT_CHARS, LONG_LINE_BYTES // (8 * len(line))):
        if len(text) > LONG_LINE_BYTES:
            text = _as_json({key: _cut(value, limit_chars) for key, value in line.items()})
    return _hidden(text)


def _as_json(line: EventDict) -> bytes:
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z)
    except TypeError:  # a lone surrogate, a key that is no string, an integer beyond 64 bits, a circle
        return json.dumps({str(key): _plain(value) for key, value in line.items()}).encode("ascii")


def _cut(value: object, limit_chars: int) -> object:
    """Both ends of what is long: a text begins with what it is, a traceback ends with what was raised."""
    text = value if isinstance(value, str) else str(_plain(value))
    if len(text) <= limit_chars:
        return value if isinstance(value, str | datetime | int | float | None) else text
    # Before the cut: what is left of a secret would not be known as one.
    text = _hidden(text.encode("utf-8", "backslashreplace")).decode()
    return f"{text[: limit_chars // 2]} … {text[-limit_chars // 2 :]}"


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _console(*, colors: bool) -> Processor:
    render = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)

    def as_bytes(logger: WrappedLogger, method: str, line: EventDict) -> bytes:
        return _hidden(render(logger, method, line).encode("utf-8", "backslashreplace"))

    return as_bytes


def _hidden(line: bytes) -> bytes:
    if b"whs" in line:
        line = _KEY.sub(rb"whs\1_***", line)
    return _PASSWORD.sub(rb"://\1:***@", line) if b"@" in line and b"://" in line else line
