"""Every case; `bench.json` has the figures."""

from pathlib import Path

from tests.bench import figures, isolation, noisy, poison, rate_limit

if __name__ == "__main__":
    figures.run(
        poison.measure,
        isolation.measure_one,
        isolation.measure_many,
        noisy.measure,
        rate_limit.measure,
        to=Path("bench.json"),
    )
