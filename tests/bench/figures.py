"""Figures of several rounds: shown as lines, written as JSON."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import orjson

from infra.logs import configure_logging
from infra.settings import Settings

Figures = Mapping[str, Sequence[float]]  # the rounds, by name
Case = Callable[[], Awaitable[Figures]]


def run(*cases: Case, to: Path | None = None) -> None:
    """Measure these one after the other, and print median, least and greatest of each figure."""
    configure_logging(Settings(log_level="warning"))  # this process has the API; dispatchers log as in production
    summaries: dict[str, dict[str, float]] = {}
    for case in cases:
        for name, rounds in asyncio.run(_measured(case)).items():
            summaries[name] = {"median": median(rounds), "min": min(rounds), "max": max(rounds)}
            print(f"{name:30}" + "".join(f"  {what} {value:10.3f}" for what, value in summaries[name].items()))
        if to is not None:  # after each case: the next one may fail
            to.write_bytes(orjson.dumps(summaries, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round: what two rounds have in common, as a busy machine, falls out."""
    return [one / other for one, other in zip(over, under, strict=True)]


async def _measured(case: Case) -> Figures:
    return await case()
