"""Which fixtures every test can ask for. They live in tests/support/, so that no test has to import from a conftest."""

pytest_plugins = [
    "tests.support.rabbitmq",
    "tests.support.postgres",
    "tests.support.receivers",
    "tests.support.system",
]
