"""Which fixtures every test can ask for. They live in tests/support/, so that no test has to import from a conftest."""

from importlib.util import find_spec

pytest_plugins = [
    name
    for name in ("tests.support.rabbitmq", "tests.support.postgres", "tests.support.receivers", "tests.support.system")
    if find_spec(name)  # while the parts are being built
]
