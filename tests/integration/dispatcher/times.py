"""The times that the rules are tried with."""

from dispatcher.core.liveness import Times

TIMES = Times(
    heartbeat_s=1,
    renewal_s=2,
    margin_s=0.5,
    liveness_s=6,
    wait_s=5,
    longest_deadline_s=60,
    settle_s=5,
    claim_cap_s=80,
)
