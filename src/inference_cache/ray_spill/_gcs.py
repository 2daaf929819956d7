"""Whether a node lives, as its cluster's GCS tells.

Ray's client of the GCS ends its process when it loses the connection for long, so it is asked in a process of
its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from enum import Enum
from typing import Any, Final

from inference_cache.ray_spill._nodes import Lease

__all__ = ["Life", "life_of"]

_CONNECT_S: Final = 2.0
_ASK_S: Final = 20.0
_MARK: Final = "inference-cache:"


class Life(Enum):
    """What is known of a node."""

    ALIVE = "alive"
    DEAD = "dead"
    """Its session is over."""
    RESTORABLE = "restorable"
    """It is dead, and its session goes on."""
    UNKNOWN = "unknown"


def life_of(lease: Lease) -> Life:
    """Asks the node's GCS; UNKNOWN when it has no address, is out of reach, or Ray is not installed."""
    host, _, port = lease.gcs.rpartition(":")
    if not host or not port.isdigit():
        return Life.UNKNOWN
    local = host.startswith("127.") or host in ("localhost", "::1", "[::1]")
    if local and lease.host != socket.gethostname():
        return Life.UNKNOWN
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            pass
    except ConnectionRefusedError:
        # The machine is there, and the GCS is not: the cluster is over.
        return Life.DEAD
    except OSError:
        return Life.UNKNOWN
    told = _ask(lease.gcs)
    if told is None:
        return Life.UNKNOWN
    if told["session"] != lease.names.session:
        return Life.DEAD if told["session"] else Life.UNKNOWN
    return Life.ALIVE if lease.names.node in told["alive"] else Life.RESTORABLE


def _ask(address: str) -> dict[str, Any] | None:
    """Session and living nodes of the cluster at that address, None when it does not tell.

    Ray's own processes are told in ``RAY_AUTH_MODE`` whether the cluster wants a token; others have to try.
    """
    told = os.environ.get("RAY_AUTH_MODE")
    for mode in (told,) if told else ("token", "disabled"):
        answer = _ask_in_mode(address, mode)
        if answer is not None:
            return answer
    return None


def _ask_in_mode(address: str, mode: str) -> dict[str, Any] | None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "inference_cache.ray_spill._gcs", address],
            env={**os.environ, "RAY_AUTH_MODE": mode},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            told: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return told
    return None


def main(address: str) -> None:
    """Prints what :func:`_ask` reads. Raises whatever Ray raises."""
    import ray._raylet
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    raylet: Any = ray._raylet
    client = raylet.GcsClient(address=address)
    session = client.internal_kv_get(b"session_name", b"session", timeout=_ASK_S / 2)
    alive = [
        node.node_id.hex()
        for node in client.get_all_node_info(timeout=_ASK_S / 2).values()
        if node.state == GcsNodeInfo.ALIVE
    ]
    print(_MARK + json.dumps({"session": (session or b"").decode(), "alive": alive}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
