"""Surroundings that are wrong: what else is there beside the server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mutants.liveness import note

__all__ = ["ENVIRONMENTS"]

Environment = Callable[[Path], AbstractContextManager[dict[str, str]]]
"""Takes the liveness file, gives values for ``{name}`` in the system's contract."""


@contextmanager
def retired_cache(liveness: Path) -> Iterator[dict[str, str]]:
    """Somebody still answers PING at a retired address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(2)
                    if connection.recv(64):
                        connection.sendall(b"+PONG\r\n")
                        note(liveness, "retired_cache", 1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield {"port": str(listener.getsockname()[1])}
        finally:
            stop.set()
            thread.join()


ENVIRONMENTS: dict[str, Environment] = {"retired_cache": retired_cache}
