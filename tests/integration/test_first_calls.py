"""The ten calls of README, run by a shell as they stand there, against `hookhare dev`.

Changed is only what a reader changes: the address that is printed, the keys, and the ids of answers before.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.dev import LIMIT_S, Dev, running

README = Path(__file__).resolve().parents[2] / "README.md"

# What each call is for, held to its answer. Those that look at what happens in the background are called until it has.
CHECKS: tuple[Callable[[Any], bool], ...] = (
    lambda key: bool(key["key"].startswith("hh_") and key["tenant"] == "acme"),
    lambda subscription: subscription["state"] == "enabled" and bool(subscription["secrets"]),
    lambda event: event["duplicate"] is False,
    lambda page: [one["status"] for one in page["data"]] == ["dead"],
    lambda page: len(page["data"]) == 1 and "refused" in page["data"][0]["reason"],
    lambda subscription: subscription["url"].endswith("/inbox"),
    lambda trial: trial["attempt"]["status_code"] == 204,
    lambda replay: replay["state"] in ("running", "completed"),
    lambda delivery: [one["outcome"] for one in delivery["attempts"]] == ["dead", "delivered"],
    lambda stats: stats["health"] == "healthy",
)
POLLED = (4, 5, 9)


def calls() -> list[str]:
    section = README.read_text().partition("### Ten calls to begin with")[2]
    block = re.search(r"\n```\n(.*?)\n```\n", section, re.DOTALL)
    assert block
    return re.split(r"\n\n", block.group(1))


class Reader:
    """Somebody with a shell who puts in what the answers said."""

    def __init__(self, dev: Dev) -> None:
        said = dev.wait_for(r"API +(\S+)\n.*admin key +(hh_\S+)\n.*inbox +(\S+)\n")
        self.addresses = {"http://127.0.0.1:8080": said.group(1), "http://127.0.0.1:8081/inbox": said.group(3)}
        self.environment = dict(os.environ) | {"ADMIN_KEY": said.group(2)}
        self.ids: dict[str, str] = {}

    def run(self, call: str) -> Any:
        for shown, real in self.addresses.items():
            call = call.replace(shown, real)
        call = re.sub(r"\b([a-z]+)_…", lambda found: self.ids[found[1]], call)
        done = subprocess.run(
            ["bash", "-euc", call], env=self.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert "error" not in answer, answer
        if "key" in answer:
            self.environment["KEY"] = answer["key"]
        return answer

    def remember(self, answer: Any) -> None:
        for one in answer.get("data", [answer]):
            if "id" in one:
                self.ids.setdefault(one["id"].partition("_")[0], one["id"])


def test_the_ten_calls_do_what_the_readme_says(tmp_path: Path) -> None:
    assert [int(re.match(r"# (\d+)\.", call)[1]) for call in calls()] == list(range(1, 11))  # type: ignore[index]
    with running(tmp_path) as dev:
        reader = Reader(dev)
        for number, (call, fits) in enumerate(zip(calls(), CHECKS, strict=True), 1):
            deadline_s = time.monotonic() + LIMIT_S
            while not fits(answer := reader.run(call)):
                assert number in POLLED, (call, answer)
                assert time.monotonic() < deadline_s, (call, answer)
                time.sleep(0.05)
            reader.remember(answer)
        dev.wait_for(rf'inbox: {reader.ids["evt"]} .*"total": 19\.90')  # byte for byte
