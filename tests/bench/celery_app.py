"""What a Python team writes today to send webhooks: one Celery task, for `celery_case.py` to measure.

It is meant to lose nothing: persistent messages, acknowledged when the task is over, and given back when its process
dies. A failure is tried again with backoff and jitter, and each attempt is a row, committed. What would cost it more is
left out in its favour: the message has the body as it is sent, and the secret is a constant, so nothing is looked up.
"""

import base64
import hashlib
import hmac
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import psycopg
import requests
from celery import Celery

SCHEMA = (
    """
    CREATE TABLE webhook_attempts (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        webhook_id text NOT NULL,
        url text NOT NULL,
        number integer NOT NULL,
        started_at timestamptz NOT NULL,
        duration_ms integer NOT NULL,
        status_code integer,
        error text
    )
    """,
    "CREATE INDEX ON webhook_attempts (webhook_id)",
)
DELIVERED = "SELECT count(*) FROM webhook_attempts WHERE status_code = 200"
DATABASE_URL = "DATABASE_URL"  # the variable; Celery itself reads CELERY_BROKER_URL

_RECORD = """
    INSERT INTO webhook_attempts (webhook_id, url, number, started_at, duration_ms, status_code, error)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
_KEY = b"the secret of every endpoint, 32b"
_TIMEOUT_S = 15

app = Celery("webhooks")
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_default_delivery_mode="persistent",
    task_ignore_result=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=8,
)


_mine = threading.local()  # each thread's own connections, and so each process's


@app.task(
    bind=True,
    name="deliver",
    autoretry_for=(requests.RequestException,),
    retry_backoff=5,
    retry_backoff_max=24 * 3600,
    retry_jitter=True,
    max_retries=9,
)
def deliver(self: Any, webhook_id: str, url: str, body: str) -> None:
    """One attempt. Raises what requests does, which is the next attempt's reason."""
    started_at, began_s = datetime.now(UTC), monotonic()
    session, database = _connections()
    status, error = None, None
    try:
        response = session.post(
            url, data=body.encode(), headers=_headers(webhook_id, body), timeout=_TIMEOUT_S, allow_redirects=False
        )
        status = response.status_code
        response.raise_for_status()
    except requests.RequestException as failure:
        error = repr(failure)
        raise
    finally:
        duration_ms = round((monotonic() - began_s) * 1000)
        number = self.request.retries + 1
        database.execute(_RECORD, (webhook_id, url, number, started_at, duration_ms, status, error))


def publish(broker_url: str, messages: Sequence[tuple[str, str, str]]) -> None:
    """Put these, and nothing else, into the queue of the workers: each the arguments of `deliver`."""
    with app.connection_for_write(broker_url) as connection, app.amqp.Producer(connection) as producer:
        app.control.purge(connection)
        for one in messages:
            deliver.apply_async(one, producer=producer)


def _connections() -> "tuple[requests.Session, psycopg.Connection]":
    if not hasattr(_mine, "session"):
        _mine.session = requests.Session()
        _mine.database = psycopg.connect(os.environ[DATABASE_URL], autocommit=True)
    return _mine.session, _mine.database


def _headers(webhook_id: str, body: str) -> dict[str, str]:
    timestamp = int(datetime.now(UTC).timestamp())
    signature = hmac.new(_KEY, f"{webhook_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }
