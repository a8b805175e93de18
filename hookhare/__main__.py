"""The `hookhare` command. Everything behind it is in `hookhare/cli.py`, which needs the server's dependencies."""

import sys

_OURS = frozenset({"hookhare", "consumer_api", "dispatcher", "producer", "infra", "schemas"})


def main() -> None:
    """Run the command; say what to install when only the base, which is enough to publish, is there."""
    try:
        from hookhare.cli import app
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in _OURS:
            raise  # a broken installation, not a light one
        sys.exit(
            f"hookhare: {package} is not installed. The base installation only publishes; the command needs more:\n"
            "    pip install 'hookhare[server]'      to run the API and the dispatcher\n"
            "    pip install 'hookhare[embedded]'    to run `hookhare dev` and `hookhare demo` as well"
        )
    app()


if __name__ == "__main__":
    main()
