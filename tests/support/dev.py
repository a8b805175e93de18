"""`hookhare dev` as a newcomer runs it: a process, in a folder of its own."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import COMMAND

LIMIT_S = 60


def environment(**settings: object) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOOKHARE_")}
    return kept | {f"HOOKHARE_{name.upper()}": str(value) for name, value in settings.items()}


@dataclass
class Dev:
    process: subprocess.Popen[str]
    output: Path

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline_s = time.monotonic() + LIMIT_S
        while not (found := re.search(pattern, self.text(), re.DOTALL)):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline_s, self.text()
            time.sleep(0.05)
        return found

    def commands(self) -> list[list[str]]:
        """The curl commands that it printed, as a shell would split them."""
        lines = self.wait_for(r"Three commands to try next:\n(.*)\nCtrl-C").group(1)
        return [shlex.split(one) for one in lines.replace("\\\n", " ").strip().split("\n\n")]


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[Dev]:
    output = folder / f"output-{time.monotonic_ns()}"
    with output.open("w") as file:
        process = subprocess.Popen(
            [COMMAND, "dev"],
            cwd=folder,
            env=environment(api_port=0, **settings),
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield Dev(process, output)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0, output.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
