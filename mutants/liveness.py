"""The proof that a mutant did what makes it one."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from fixtures.faults.wrapper import LIVENESS_ENV, read_liveness

__all__ = ["note", "note_adapter", "read_liveness"]


def note(path: Path, name: str, acted: int) -> None:
    """Add to the count of a name in the liveness file; several processes may write it."""
    with open(f"{path}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        counts = read_liveness(path)
        counts[name] = counts.get(name, 0) + acted
        draft = Path(f"{path}.{os.getpid()}")
        draft.write_text(json.dumps(counts), "utf-8")
        draft.replace(path)


def note_adapter(name: str) -> None:
    """An adapter under ``--implementation`` did its wrong thing once."""
    path = os.environ.get(LIVENESS_ENV)
    if path:
        note(Path(path), name, 1)
