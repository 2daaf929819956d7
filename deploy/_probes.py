"""Whether the server lives and whether it may be asked: two questions with two answers while it loads.

A server that reads its data set back answers PING with LOADING. It is well, and killing it only makes it
begin again; but a client that reached it would take every stored key for lost.
"""

from __future__ import annotations

from typing import Any

from inference_cache.contract import Contract

__all__ = ["alive_script", "grace_period_s", "probes", "ready_script"]

_SNAPSHOT_BYTES_S = 25_000_000
"""What a slow network volume writes in a second."""
_DRAIN_S = 5
"""From the order to end until no Service sends new connections."""


def alive_script(port: int, *, user: str = "") -> str:
    """Succeeds while the server answers at all: also with LOADING or BUSY, or a demand for a password."""
    return (
        f'answer="$({_ping(port, user)} 2>&1)"\n'
        'case "$answer" in\n'
        "  PONG|LOADING*|BUSY*|MASTERDOWN*|MISCONF*|NOAUTH*) exit 0 ;;\n"
        "esac\n"
        'echo "$answer"\n'
        "exit 1\n"
    )


def ready_script(port: int, *, user: str = "") -> str:
    """Succeeds when the server answers requests: PONG and nothing else."""
    return f'answer="$({_ping(port, user)} 2>&1)"\n[ "$answer" = PONG ] || {{ echo "$answer"; exit 1; }}\n'


def _ping(port: int, user: str) -> str:
    # The password stands in VALKEYCLI_AUTH or REDISCLI_AUTH, which no list of processes shows.
    login = f"--user {user} --no-auth-warning " if user else ""
    return f"timeout 4 valkey-cli -h 127.0.0.1 -p {port} {login}ping"


def probes(contract: Contract, port: int, *, user: str = "") -> dict[str, Any]:
    """The three probes of the server's container."""
    alive = {"exec": {"command": ["sh", "-c", alive_script(port, user=user)]}, "timeoutSeconds": 5}
    ready = {"exec": {"command": ["sh", "-c", ready_script(port, user=user)]}, "timeoutSeconds": 5}
    return {
        # Until the socket is open; loading comes after that, for as long as it takes.
        "startupProbe": {**alive, "periodSeconds": 2, "failureThreshold": 60},
        # A fork or the freeing of a large value may hold up one answer or two, not twelve in a minute.
        "livenessProbe": {**alive, "periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {**ready, "periodSeconds": 5, "failureThreshold": 2},
    }


def grace_period_s(contract: Contract) -> int:
    """Time to end in: until connections are drained and a snapshot of all of the memory is written."""
    needed = _DRAIN_S + contract.instance.maxmemory_bytes / _SNAPSHOT_BYTES_S
    return max(60, -(-int(needed) // 30) * 30)
