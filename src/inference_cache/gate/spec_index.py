"""Which spec proves which clause, and what it demands, read from the suite's source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["spec_docs", "spec_index"]


def spec_index(conformance: Path, *, kind: str = "") -> dict[str, list[str]]:
    """Spec names (``file::test``) by clause id, for every ``@clause("ID", ...)`` under the folder.

    With ``kind`` those that are for targets of that kind; a clause that has none of them is left out.
    """
    index: dict[str, list[str]] = {}
    for spec in _specs(conformance):
        if not kind or not spec.only or kind in spec.only:
            index.setdefault(spec.clause_id, []).append(spec.name)
    return index


def spec_docs(conformance: Path) -> dict[str, str]:
    """The docstring of each spec, by its name in :func:`spec_index`: the requirement in detail."""
    return {spec.name: spec.doc for spec in _specs(conformance)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spec:
    clause_id: str
    name: str
    doc: str
    only: tuple[str, ...]
    """Kinds of targets that it is for; empty for all."""


def _specs(conformance: Path) -> Iterator[_Spec]:
    for path in sorted(conformance.glob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                match decorator:
                    case ast.Call(
                        func=ast.Name(id="clause"),
                        args=[ast.Constant(value=str(clause_id)), *_],
                        keywords=keywords,
                    ):
                        yield _Spec(
                            clause_id=clause_id,
                            name=f"{path.name}::{node.name}",
                            doc=ast.get_docstring(node) or "",
                            only=next((ast.literal_eval(k.value) for k in keywords if k.arg == "only"), ()),
                        )
                    case _:
                        continue
