"""Every case; `bench.json` has the figures."""

from pathlib import Path

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

if __name__ == "__main__":
    figures.run(
        throughput.measure_efficiency,
        throughput.measure_machine,
        latency.measure,
        poison.measure,
        isolation.measure_one,
        isolation.measure_many,
        noisy.measure,
        rate_limit.measure,
        growth.measure,
        pages.measure,
        celery_case.measure,
        cold_start.measure,
        to=Path("bench.json"),
    )
