"""The kill matrix as a page, and the track record as a document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from inference_cache.contract import load
from mutants.catalog import MUTANTS
from mutants.model import Mutant, System

if TYPE_CHECKING:
    from mutants.run import Judgment

__all__ = ["clause_of", "track_record", "write_matrix"]

_TEMPLATES = Path(__file__).parent / "templates"


def clause_of(system: System) -> str:
    """The clause that a mutant is held against; good systems are held against all."""
    return system.clause if isinstance(system, Mutant) else "(all)"


def write_matrix(
    file: Path, judgments: Sequence[Judgment], unkilled: Sequence[str], left_out: Sequence[str]
) -> None:
    """One self-contained page: rows are systems, columns are clauses, and the four numbers on top."""
    contract = load()
    named = {clause_of(j.system) for j in judgments}
    seen = {clause for j in judgments for clause in j.outcomes}
    columns = [clause for clause in contract.clauses if clause in named | seen]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    mutants = [j for j in judgments if isinstance(j.system, Mutant)]
    good = [j for j in judgments if not isinstance(j.system, Mutant)]
    text = environment.get_template("matrix.html.j2").render(
        mutants=mutants,
        good=good,
        columns=columns,
        groups=[(g, sum(contract.clauses[c].group == g for c in columns)) for g in contract.groups()],
        statements={clause: contract.clauses[clause].statement for clause in columns},
        numbers={
            "killed": sum(j.standing.value == "killed" for j in mutants),
            "survived": sum(
                j.standing.value in ("survived", "rejected for the wrong reason") for j in mutants
            ),
            "broken mutants": sum(j.standing.value == "broken mutant" for j in mutants),
            "false alarms": sum(j.standing.value == "false alarm" for j in good),
        },
        unkilled=unkilled,
        left_out=left_out,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


def track_record() -> str:
    """Markdown: what has happened elsewhere, the mutant made of it, and the clause that rejects it."""
    lines = [
        "# Track record",
        "",
        "What has gone wrong with caches, as mutants: each is a system (or a suite) wrong in one way, and",
        "the clause beside it rejects it, by its own assertion. `inference-cache selftest` shows it again.",
        "Made by `inference-cache selftest --track-record`.",
        "",
        "| Incident | Mutant | Rejected by |",
        "|---|---|---|",
    ]
    order = list(load().clauses)
    with_incident = [mutant for mutant in MUTANTS if mutant.incident]
    for mutant in sorted(with_incident, key=lambda m: order.index(m.clause) if m.clause in order else -1):
        cells = (mutant.incident, f"{mutant.id}: {mutant.title}", mutant.clause)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
