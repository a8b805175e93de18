"""Every case, or those that are named; `bench.json` has the figures."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.bench import (
    celery_case,
    cold_start,
    figures,
    growth,
    isolation,
    latency,
    noisy,
    pages,
    poison,
    rate_limit,
    throughput,
)

CASES: Final[Mapping[str, Sequence[figures.Case]]] = {
    "throughput": (throughput.measure_efficiency, throughput.measure_machine),
    "latency": (latency.measure,),
    "poison": (poison.measure,),
    "isolation": (isolation.measure_one, isolation.measure_many),
    "noisy": (noisy.measure,),
    "rate_limit": (rate_limit.measure,),
    "growth": (growth.measure,),
    "pages": (pages.measure,),
    "celery": (celery_case.measure,),
    "cold_start": (cold_start.measure,),
}

if __name__ == "__main__":
    parser = ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("case", nargs="*", help=f"one of {', '.join(CASES)}; all, in this order, unless said")
    names = parser.parse_args().case or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}: there are {', '.join(CASES)}")
    figures.run(*(case for name in names for case in CASES[name]), to=Path("bench.json"))
