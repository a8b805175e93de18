"""Every case; `bench.json` has the figures."""

from pathlib import Path

from tests.bench import figures, poison

if __name__ == "__main__":
    figures.run(poison.measure, to=Path("bench.json"))
