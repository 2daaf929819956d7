"""The shipped dashboards, and the same with one thing wrong."""

from __future__ import annotations

import json
from typing import Any

from dashboards.generate import files
from inference_cache.contract import load

__all__ = ["BOARDS", "FILES", "SERVER", "asking", "changed"]

FILES = files(load())
BOARDS = {name: json.loads(text) for name, text in FILES.items()}


def changed(file: str, called: str, /, **changes: Any) -> dict[str, str]:
    """The shipped dashboards with keys of one panel replaced."""
    board = json.loads(FILES[file])
    panel = next(panel for panel in board["panels"] if panel["title"] == called)
    panel.update(changes)
    return {**FILES, file: json.dumps(board)}


def asking(expr: str, legend: str = "a legend", **changes: Any) -> dict[str, str]:
    """The shipped dashboards, with one panel asking something else."""
    target = {
        "refId": "A",
        "expr": expr,
        "legendFormat": legend,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
    }
    return changed("memory.json", "Fragmentation", targets=[{**target, **changes}])


SERVER = 'namespace=~"$namespace", job=~"$job", instance=~"$instance"'
