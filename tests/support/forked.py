"""What a dispatcher's process runs in tests: the `hookhare dispatcher` command, with a fault set at a point if one is.

The process is forked from a server that has imported everything (`multiprocessing`'s forkserver): so it starts in a
tenth of a second, where a new interpreter takes a whole one of a core.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import dispatcher.bootstrap  # noqa: F401  imported once, before the fork
from hookhare.__main__ import main
from hookhare.cli import app  # noqa: F401
from tests.support.points import Point, trap, under_way

COME_TO = "come to its point"  # what the log's line about it begins with, followed by the POSTs under way


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def fork(
    environment: Mapping[str, str],
    log: Path,
    fault: signal.Signals,
    points: tuple[Point, ...],
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """A dispatcher's process, started; its output goes to `log`. It sends itself `fault` at the points.

    `prepare` is called in it before anything else; it has to be one that can be pickled.
    """
    process = _context().Process(target=_run, args=(dict(environment), log, fault, points, prepare), daemon=True)
    process.start()
    return process


def _run(
    environment: Mapping[str, str],
    log: Path,
    fault: signal.Signals,
    points: tuple[Point, ...],
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.argv[1:] = ["dispatcher"]
    if prepare is not None:
        prepare()
    with ExitStack() as stack:
        for point in points:
            stack.enter_context(trap(point, lambda: _fall(fault)))
        main()


def _fall(fault: signal.Signals) -> None:
    print(COME_TO, json.dumps(under_way), flush=True)
    os.kill(os.getpid(), fault)
