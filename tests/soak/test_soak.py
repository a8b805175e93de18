"""A short soak over each broker; `make soak SECONDS=600` is the long one."""

from pathlib import Path

import pytest

from tests.soak.run import soak

SEED, SECONDS = 11, 12


@pytest.mark.parametrize("broker", ["rabbitmq", "embedded"])
async def test_all_that_goes_wrong_for_a_while_loses_nothing(broker: str, tmp_path: Path) -> None:
    report = await soak(seed=SEED, seconds=SECONDS, broker=broker, folder=tmp_path, tell=print)
    assert not report.findings, "\n".join(report.findings)
    assert report.faults > SECONDS / 3
    assert sum(line.ended.get("delivered", 0) for line in report.lines) > 100
