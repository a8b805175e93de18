"""Which fixtures every test can ask for. They live in tests/support/, so that no test has to import from a conftest."""

import os

pytest_plugins = [
    "tests.support.logs",
    "tests.support.rabbitmq",
    "tests.support.postgres",
    "tests.support.receivers",
    "tests.support.system",
]


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, because many tests mostly wait; each has servers of its own.

    A RabbitMQ that was given (tests/support/rabbitmq.py) is one for all, so it can serve only one process.
    """
    if os.environ.get("HOOKHARE_TEST_AMQP_URL"):
        return 1
    return (os.cpu_count() or 1) + 1
