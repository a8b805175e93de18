"""Log lines: one JSON object each, the libraries' too, and no secret in any."""

import asyncio
import io
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import structlog
from pydantic import SecretStr

from infra.logs import CUT_CHARS, LONG_LINE_BYTES, configure_logging
from infra.settings import Settings

Lines = Callable[[], list[dict[str, Any]]]


class Stream:
    """A text stream over bytes, as standard error is."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        self.text = io.TextIOWrapper(self.buffer, write_through=True)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.buffer.getvalue().splitlines()]


def ours() -> list[logging.Handler]:
    """The handlers that we have put there; pytest has its own."""
    return [handler for handler in logging.getLogger().handlers if type(handler).__module__ == "infra.logs"]


def configured(**settings: Any) -> Stream:
    stream = Stream()
    configure_logging(Settings(**settings), stream.text)
    return stream


def test_a_line_is_a_json_object_with_level_and_utc_time() -> None:
    stream = configured()
    before = datetime.now(UTC)
    structlog.get_logger("x").info("delivery.attempted", attempt=1, reason=None, id=UUID(int=5))
    (line,) = stream.lines()
    at = datetime.fromisoformat(line.pop("timestamp"))
    assert at.tzinfo is not None
    assert before <= at <= datetime.now(UTC)
    assert line == {
        "event": "delivery.attempted",
        "level": "info",
        "attempt": 1,
        "reason": None,
        "id": "00000000-0000-0000-0000-000000000005",
    }


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_nothing_below_the_level_is_logged(level: str, shown: int) -> None:
    stream = configured(log_level=level)
    log = structlog.get_logger("x")
    for method in (log.debug, log.info, log.warning, log.error):
        method("said")
    assert len(stream.lines()) == shown


def test_an_exception_is_shown_without_local_variables() -> None:
    stream = configured()

    def fail() -> None:
        _ = "from a local variable".upper()
        raise ValueError("what went wrong")

    try:
        fail()
    except ValueError:
        structlog.get_logger("x").exception("failed")
        logging.getLogger("some.library").exception("failed too")
    own, theirs = stream.lines()
    for line in (own, theirs):
        assert line["level"] == "error"
        assert "ValueError: what went wrong" in line["exception"]
        assert "FROM A LOCAL VARIABLE" not in json.dumps(line)
    assert theirs["logger"] == "some.library"


def test_libraries_are_heard_from_warnings_up_in_the_same_form() -> None:
    stream = configured(log_level="debug")
    library = logging.getLogger("aiohttp.client")
    library.info("chatter")
    library.warning("hello %s", "world")
    (line,) = stream.lines()
    assert (line["event"], line["level"], line["logger"]) == ("hello world", "warning", "aiohttp.client")
    assert line["timestamp"].endswith("Z")


def test_a_record_that_cannot_be_formatted_breaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stream = configured()
    (handler,) = ours()
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",), "levelname": "WARNING"}))
    handler.handle(logging.makeLogRecord({"msg": "fine", "levelname": "WARNING"}))
    assert [line["event"] for line in stream.lines()] == ["fine"]
    assert "--- Logging error ---" in capsys.readouterr().err


def test_a_processor_may_drop_a_librarys_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As the one does by which a test reads along; what the library was doing goes on."""
    stream = configured()
    with structlog.testing.capture_logs() as lines:
        logging.getLogger("library").warning("a wire was lost")
    assert [(line["event"], line["logger"]) for line in lines] == [("a wire was lost", "library")]
    assert stream.lines() == []
    assert capsys.readouterr().err == ""


def test_configuring_again_does_not_log_twice() -> None:
    configured()
    stream = configured()
    logging.getLogger("library").warning("once")
    assert len(stream.lines()) == 1


@pytest.mark.parametrize(
    ("said", "hidden"),
    [
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("whsk_" + "A" * 86 + "==", "AAAA"),
        ("amqp://guest:pass-word@127.0.0.1:5672/", "pass-word"),
        ("postgresql://user:p%40ss@/db?host=/tmp", "p%40ss"),
        ("https://:token@example.com/", "token"),
        ("two: amqp://a:first@h and amqp://b:second@h", "second"),
    ],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(said: str, hidden: str, log_format: str) -> None:
    stream = configured(log_format=log_format)
    structlog.get_logger("x").warning(said, value=said, nested={"deep": [said]})
    logging.getLogger("library").warning("about %s", said)
    structlog.get_logger("x").error("failed", exc_info=ValueError(said))
    text = stream.buffer.getvalue().decode()
    assert text.count("***") >= 5
    assert hidden not in text


def test_secret_settings_do_not_show_themselves() -> None:
    stream = configured()
    structlog.get_logger("x").info("started", settings=Settings(broker_url=SecretStr("amqp://u:hunter2@h/")))
    structlog.get_logger("x").info("key", key=SecretStr("hunter2"))
    assert b"hunter2" not in stream.buffer.getvalue()


def test_urls_without_a_password_stay_whole() -> None:
    stream = configured()
    structlog.get_logger("x").info("said", url="https://example.com:8443/hook?at=10:30&to=a@b")
    assert stream.lines()[0]["url"] == "https://example.com:8443/hook?at=10:30&to=a@b"


def test_what_orjson_refuses_is_logged_all_the_same() -> None:
    stream = configured()
    circle: list[Any] = []
    circle.append(circle)
    structlog.get_logger("x").warning(
        "odd", lone="\udcff", big=2**70, keys={1: 2}, circle=circle, moment=datetime.now(UTC)
    )
    structlog.get_logger("x").warning("plain")
    odd, plain = stream.lines()
    assert (odd["event"], odd["big"], odd["level"]) == ("odd", 2**70, "warning")
    assert odd["timestamp"].endswith("Z")
    assert plain["event"] == "plain"


def test_for_a_person_a_line_is_text() -> None:
    stream = configured(log_format="console")
    structlog.get_logger("x").info("delivery.attempted", attempt=3)
    text = stream.buffer.getvalue().decode()
    assert "delivery.attempted" in text
    assert "attempt=3" in text
    assert not text.startswith("{")


def test_a_line_that_is_too_long_is_cut_value_by_value_and_stays_json() -> None:
    stream = configured()
    secret = "whsec_" + "A" * 44
    to_the_end = " " + "y" * (CUT_CHARS // 2 - 20)  # so that the cut would go through the secret before it
    log = structlog.get_logger("x")
    log.warning("long", text="x" * 100_000 + secret + to_the_end, many=list(range(100_000)), short="as it is", n=7)
    log.warning("failed", exc_info=ValueError("z" * 100_000))
    log.warning("escaped", **{f"value_{number}": "é\x01" * 3000 for number in range(8)})
    for raw in stream.buffer.getvalue().splitlines():
        assert len(raw) < LONG_LINE_BYTES
        assert b"AAAA" not in raw
    long, failed, _ = stream.lines()
    assert long["text"].startswith("xxx")
    assert long["text"].endswith("yyy")
    assert long["many"].startswith("[0, 1")
    assert (long["short"], long["n"], long["event"]) == ("as it is", 7, "long")
    assert failed["exception"].startswith("ValueError: zzz")
    assert failed["exception"].endswith("zzz")


def test_a_line_of_common_length_is_not_touched() -> None:
    stream = configured()
    structlog.get_logger("x").warning("common", text="x" * (LONG_LINE_BYTES - 200))
    assert len(stream.lines()[0]["text"]) == LONG_LINE_BYTES - 200


async def test_lines_of_one_turn_of_the_event_loop_go_out_together_and_without_a_loop_each_at_once() -> None:
    flushes = 0

    class Counting(io.BytesIO):
        def flush(self) -> None:
            nonlocal flushes
            flushes += 1

    out = Counting()
    text = io.TextIOWrapper(out, write_through=True)
    configure_logging(Settings(), text)
    log = structlog.get_logger("x")
    flushes = 0
    log.info("one")
    log.info("two")
    assert flushes == 0
    await asyncio.sleep(0)
    assert flushes == 1
    await asyncio.to_thread(log.info, "three")
    assert flushes == 2
    assert len(out.getvalue().splitlines()) == 3
