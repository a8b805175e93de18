"""The `hookhare` command as an operator runs it: a process, with an environment, an output and an end."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.waiting import eventually

COMMAND = Path(sys.executable).with_name("hookhare")
LIMIT_S = 60


async def run(environment: Mapping[str, str], *command: str) -> tuple[int, str]:
    """Run a command to its end: its exit code, and all that it said."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, said.decode()


@asynccontextmanager
async def serving(environment: Mapping[str, str], command: str, log: Path) -> AsyncIterator[str]:
    """`hookhare api` or `hookhare dispatcher`, from when it says that it is up until SIGTERM; its base URL."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(COMMAND, command, env=environment, stdout=output, stderr=output)
    up = re.compile(rf'"port":(\d+),"event":"{command}\.started"')

    def port() -> str | None:
        found = up.search(log.read_text())
        return found and found.group(1)

    def end_of_log() -> str:
        return log.read_text()[-2000:]

    async def started() -> bool:
        assert process.returncode is None, end_of_log()
        return port() is not None

    async def told() -> str:
        return end_of_log()

    try:
        await eventually(started, told, deadline_s=LIMIT_S)
        yield f"http://127.0.0.1:{port()}"
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            assert await process.wait() == 0, end_of_log()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
