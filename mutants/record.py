"""``selftest.json``: what was judged so far, kept while it runs, so that a run can be taken up again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mutants.matrix import clause_of
from mutants.model import System
from mutants.run import Judgment, Standing

__all__ = ["Record"]

_PARTS = ("conformance", "fixtures", "mutants", "src/inference_cache", "alerts", "dashboards", "deploy")


class Record:
    """The file in ``folder``; ``suite`` is where the sources lie that a judgment depends on."""

    def __init__(self, folder: Path, suite: Path) -> None:
        self._file = folder / "selftest.json"
        self._fingerprint = _fingerprint(suite)

    def earlier(self, systems: Sequence[System]) -> list[Judgment]:
        """Judgments of these systems that stand: good ones, made by the suite as it is now."""
        if not self._file.exists():
            return []
        content: dict[str, Any] = json.loads(self._file.read_text("utf-8"))
        if content.get("suite_sha256") != self._fingerprint:
            return []
        by_id = {system.id: system for system in systems}
        return [
            Judgment(
                system=by_id[entry["id"]],
                standing=Standing(entry["standing"]),
                detail=entry["detail"],
                outcomes=entry["outcomes"],
                acted=entry["acted"],
                duration_s=entry["duration_s"],
            )
            for entry in content["systems"]
            if entry["id"] in by_id and Standing(entry["standing"]).good
        ]

    def write(
        self, judgments: Sequence[Judgment], unkilled: Sequence[str], counts: Mapping[Standing, int]
    ) -> None:
        """Write what is known; readers never see half a file."""
        content = {
            "suite_sha256": self._fingerprint,
            "counts": {str(standing): count for standing, count in counts.items()},
            "must_clauses_without_killer": list(unkilled),
            "systems": [
                {
                    "id": j.system.id,
                    "title": j.system.title,
                    "clause": clause_of(j.system),
                    "standing": str(j.standing),
                    "detail": j.detail,
                    "acted": j.acted,
                    "outcomes": j.outcomes,
                    "duration_s": j.duration_s,
                }
                for j in judgments
            ],
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        draft.replace(self._file)


def _fingerprint(suite: Path) -> str:
    """Of every source that a judgment may depend on; in a wheel the package lies around the suite."""
    seen = hashlib.sha256()
    roots = [suite / part for part in _PARTS if (suite / part).is_dir()]
    roots += [suite.parent] if suite.name == "suite" else []
    for path in sorted(path for root in roots for path in root.rglob("*") if path.suffix in (".py", ".toml")):
        seen.update(str(path.relative_to(suite.parent)).encode())
        seen.update(path.read_bytes())
    return seen.hexdigest()
