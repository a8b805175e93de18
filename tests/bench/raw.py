"""The limit that a dispatcher is held against: a loop of aiohttp POSTs that does nothing else.

One process, uvloop, one session; `WORKERS` POSTs at once over connections that are kept, to the same receiver as the
dispatcher's, with a body and headers of the same size. It reads each answer to its end, and has a server's garbage
collection (`hookhare/process.py`).
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Iterator

import aiohttp
import uvloop

from hookhare.process import collect_less_garbage

WORKERS = 100
_BODY = b'{"type":"order.created","timestamp":"2026-01-31T00:00:00.000Z","data":{"text":"%b"}}' % (b"x" * 900)
_HEADERS = {
    "content-type": "application/json",
    "user-agent": "Hookhare/0.1",
    "webhook-id": "evt_01jz0000000000000000000000",
    "webhook-timestamp": "1767225600",
    "webhook-signature": "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
}


async def posts_per_cpu_s(url: str, count: int) -> float:
    """POSTs per CPU-second of a process that does nothing else."""
    command = [sys.executable, "-m", "tests.bench.raw", url, str(count)]
    done = await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.PIPE)
    return float(json.loads(done.stdout))


async def _post_all(url: str, count: int) -> float:
    async def work(session: aiohttp.ClientSession, turns: Iterator[int]) -> None:
        for _ in turns:
            body = aiohttp.BytesPayload(_BODY, content_type="application/json")
            async with session.post(url, data=body, headers=_HEADERS, allow_redirects=False) as response:
                await response.read()

    async def work_all(session: aiohttp.ClientSession, number: int) -> None:
        turns = iter(range(number))
        await asyncio.gather(*(work(session, turns) for _ in range(WORKERS)))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        await work_all(session, 10 * WORKERS)
        collect_less_garbage()
        before = resource.getrusage(resource.RUSAGE_SELF)
        await work_all(session, count)
        after = resource.getrusage(resource.RUSAGE_SELF)
    return count / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("count", type=int)
    given = parser.parse_args()
    print(json.dumps(uvloop.run(_post_all(given.url, given.count))))
