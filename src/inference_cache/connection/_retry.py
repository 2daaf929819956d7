"""What is tried again: opening a connection, and a command that only reads."""

from __future__ import annotations

import socket
import ssl
from typing import Any, Final

import valkey.exceptions as vke
from valkey.commands.cluster import READ_COMMANDS

from inference_cache.connection._deadlines import remaining_s
from inference_cache.connection._errors import os_error
from inference_cache.connection._plan import Plan, RetryPolicy


def pause_before_retry_s(retry: RetryPolicy, attempt: int, error: Exception) -> float | None:
    """Seconds to wait before connecting again; None to give up, as a refusal by word or by TLS will stay."""
    if attempt >= retry.connect_attempts or type(error) is not vke.ConnectionError or hasattr(error, "reply"):
        return None
    cause = os_error(error)
    if isinstance(cause, (ssl.SSLError, PermissionError)):
        return None
    if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
        return None
    pause_s = retry.pause_s(attempt)
    left_s = remaining_s()
    return pause_s if left_s is None or pause_s < left_s else None


READS: Final = READ_COMMANDS | {
    "CONFIG GET",
    "DBSIZE",
    "DUMP",
    "EXPIRETIME",
    "HSCAN",
    "INFO",
    "LASTSAVE",
    "MEMORY USAGE",
    "OBJECT ENCODING",
    "OBJECT FREQ",
    "OBJECT IDLETIME",
    "PEXPIRETIME",
    "PING",
    "ROLE",
    "SCAN",
    "SMISMEMBER",
    "SSCAN",
    "TIME",
    "TYPE",
    "XLEN",
    "XRANGE",
    "XREVRANGE",
    "ZMSCORE",
    "ZRANGEBYSCORE",
    "ZRANK",
    "ZSCAN",
}
"""Commands that change nothing, not even a cursor or a recency that matters, and may be sent twice."""


def may_resend(plan: Plan, connection: Any, command: str, error: Exception) -> bool:
    """Whether a lost connection was an idle one gone stale, and the command only reads."""
    return (
        connection.reused
        and plan.retry.reads
        and command in READS
        and type(error) is vke.ConnectionError
        and not hasattr(error, "reply")
    )
