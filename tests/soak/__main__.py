"""`python -m tests.soak`: everything goes wrong for a while, and then the accounting has to be right."""

import argparse
import asyncio
import logging
import random
import sys
import tempfile
from pathlib import Path

import structlog
from rich.console import Console

from tests.soak.run import Report, soak

_ENDS = ("delivered", "dead", "canceled")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long things go wrong (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1_000_000), help="of the schedule; drawn if absent"
    )
    parser.add_argument("--broker", choices=("rabbitmq", "embedded"), default="rabbitmq")
    parser.add_argument("--rate", type=float, default=50, help="events a second (%(default)s)")
    asked = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"Soak over {asked.broker}, {asked.seconds:.0f} s of faults. SEED={asked.seed}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for name in ("aiormq", "aio_pika", "infra"):  # what they say of lost wires is told by the schedule already
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="hookhare-soak-") as folder:
        report = asyncio.run(
            soak(
                seed=asked.seed,
                seconds=asked.seconds,
                broker=asked.broker,
                folder=Path(folder),
                tell=console.print,
                rate_per_s=asked.rate,
            )
        )
    _show(console, report)
    if report.findings:
        console.print(f"NOT AS IT SHOULD BE, with SEED={asked.seed}:")
        for finding in report.findings:
            console.print(f"  {finding}")
        return 1
    console.print(f"Nothing lost, and every repeat explained. SEED={asked.seed}")
    return 0


def _show(console: Console, report: Report) -> None:
    console.print("Events: " + ", ".join(f"{number} {what}" for what, number in report.published.items()))
    head = ("endpoint", "deliveries", *_ENDS, "POSTs", "replays")
    console.print("{:<12}{:>10} = {:>9} + {:>6} + {:>8}{:>10}{:>10}   repeats, and why".format(*head))
    for line in report.lines:
        ends = [line.ended.get(end, 0) for end in _ENDS]
        why = ", ".join(f"{number} {what}" for what, number in line.repeats.items())
        numbers = (line.path, line.deliveries, *ends, line.posts, line.replays, why or "none")
        console.print("{:<12}{:>10} = {:>9} + {:>6} + {:>8}{:>10}{:>10}   {}".format(*numbers))
    console.print(
        f"{report.faults} faults, {report.dispatchers} dispatchers started, {report.repeats} repeats explained, "
        f"settled {report.settled_s:.0f} s after the last fault, "
        f"no dispatcher grew by more than {report.grown_bytes / 1e6:.0f} MB."
    )


if __name__ == "__main__":
    sys.exit(main())
