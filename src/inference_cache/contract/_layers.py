"""Contract files: found, parsed, and laid over each other with a note of which file wrote each key."""

from __future__ import annotations

import datetime as dt
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

from inference_cache.errors import ContractError, ContractProblem

__all__ = [
    "DEFAULT",
    "SHIPPED",
    "KeyPath",
    "Layer",
    "Merged",
    "dotted",
    "merge",
    "nearest",
    "read_layers",
    "shown",
]

KeyPath = tuple[str, ...]

DEFAULT: Final = "adr_0023"
SHIPPED: Final = (DEFAULT, "adr_0023_safe")

_TOP_LEVEL: Final = (
    "name",
    "extends",
    "remove_workloads",
    "instance",
    "workloads",
    "deadlines",
    "waivers",
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_\-\[\]]+")
_SYNTAX_ERROR = re.compile(
    r"(?P<what>.*) \(at (line (?P<line>\d+), column (?P<column>\d+)|end of document)\)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One contract file. ``label`` names it in messages as its reader knows it."""

    label: str
    table: Mapping[str, Any]
    shipped: bool


@dataclass(slots=True)
class Merged:
    """The effective contract before validation, and where each of its keys was written."""

    layers: tuple[Layer, ...]
    table: dict[str, Any] = field(default_factory=dict)
    written_in: dict[KeyPath, int] = field(default_factory=lambda: {(): 0})
    """Index of the layer that wrote a value last, or opened a table first; all begins in the base."""
    problems: list[ContractProblem] = field(default_factory=list)

    def file_of(self, path: KeyPath) -> str:
        """The file that wrote the key; for a missing one, the file that opened the table around it."""
        return self.layers[self._layer_of(path)].label

    def written_last(self, paths: Iterable[KeyPath]) -> KeyPath:
        """Of keys that do not go together, the one to blame: of the topmost file, and its last one there."""
        return max(reversed(tuple(paths)), key=self._layer_of)

    def _layer_of(self, path: KeyPath) -> int:
        above = (path[:length] for length in range(len(path), -1, -1))
        return next(self.written_in[known] for known in above if known in self.written_in)

    def lay_over(self, index: int, table: Mapping[str, Any], path: KeyPath = ()) -> None:
        """Put a layer's tables over what is there: tables merge by key, anything else replaces."""
        target = self.table
        for name in path:
            target = target[name]
        for key, value in table.items():
            here = (*path, key)
            if isinstance(value, Mapping):
                if not isinstance(target.get(key), dict):
                    target[key] = {}
                    self.written_in[here] = index
                self.lay_over(index, value, here)
            else:
                target[key] = value
                self.written_in[here] = index

    def remove_workload(self, name: str) -> None:
        del self.table["workloads"][name]
        self.written_in = {p: i for p, i in self.written_in.items() if p[:2] != ("workloads", name)}


def dotted(path: KeyPath) -> str:
    """The key as it is written in TOML: ``workloads.vllm_kv.ttl_s``."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else repr(part) for part in path)


def shown(value: object) -> str:
    """A value for an error message: shortened, and without what may be a password before an ``@``."""
    if isinstance(value, Mapping):
        return f"a table with {', '.join(map(str, value)) or 'nothing in it'}"
    if isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, str) and "@" in value:
        text = repr(f"***@{value.rpartition('@')[2]}")
    elif isinstance(value, (bool, dt.date, dt.time)):
        text = str(value).lower()
    else:
        text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one was probably meant to be."""
    matches = difflib.get_close_matches(name, tuple(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def read_layers(source: str | Path | None) -> tuple[Layer, ...]:
    """The file and all that it extends, base first.

    Raises:
        ContractError: a file is missing, unreadable or not TOML, or files extend each other in a circle.
    """
    layers: list[Layer] = []
    seen: set[str] = set()
    reference: str | Path = DEFAULT if source is None else source
    folder = Path()
    while True:
        shipped = isinstance(reference, str) and reference in SHIPPED
        path = Path(f"{reference}.toml") if shipped else folder / reference
        try:
            if shipped:
                identity = str(reference)
                content = resources.files(__package__).joinpath(path.name).read_bytes()
            else:
                identity = os.path.realpath(path)
                content = path.read_bytes()
        except (OSError, ValueError) as exc:
            raise _unreadable(exc, reference, layers) from exc
        if identity in seen:
            allowed = "a contract that does not extend this one"
            raise _error(layers[-1].label, "extends", shown(reference), allowed)
        seen.add(identity)
        table = _parse(str(path), content)
        if not shipped:
            # A changed contract must not go under the name of the one that it changes.
            table = {"name": path.stem, **table}
            folder = path.parent
        layers.append(Layer(label=str(path), table=table, shipped=shipped))
        if shipped and reference == DEFAULT:
            return tuple(reversed(layers))
        extends = table.get("extends", DEFAULT)
        if not isinstance(extends, str) or not extends:
            allowed = f"one of {', '.join(SHIPPED)}, or the path of a contract file"
            raise _error(str(path), "extends", shown(extends), allowed)
        reference = extends


def merge(layers: tuple[Layer, ...]) -> Merged:
    """Lay the files over each other, base first; what a file may not write goes to ``problems``."""
    merged = Merged(layers=layers)
    for index, layer in enumerate(layers):
        table = dict(layer.table)
        if index > 0:
            _check_top_level(merged, layer)
            table.pop("clauses", None)
            _remove_workloads(merged, layer)
        for handled in ("extends", "remove_workloads", "waivers"):
            table.pop(handled, None)
        merged.lay_over(index, {k: v for k, v in table.items() if k in _TOP_LEVEL or index == 0})
    return merged


def _check_top_level(merged: Merged, layer: Layer) -> None:
    for key, value in layer.table.items():
        if key == "clauses":
            paths: list[KeyPath] = [("clauses", i) for i in value] if isinstance(value, Mapping) else []
            for path in paths or [("clauses",)]:
                merged.problems.append(
                    ContractProblem(
                        file=layer.label,
                        key=dotted(path),
                        found="an override of the clause catalogue",
                        allowed="nothing: the catalogue is the same for everyone; "
                        "to let a clause fail for a time, use [[waivers]]",
                    )
                )
        elif key not in _TOP_LEVEL:
            merged.problems.append(
                ContractProblem(
                    file=layer.label,
                    key=dotted((key,)),
                    found="an unknown key",
                    allowed=f"one of {', '.join(_TOP_LEVEL)}",
                    suggestion=nearest(key, _TOP_LEVEL),
                )
            )


def _remove_workloads(merged: Merged, layer: Layer) -> None:
    names = layer.table.get("remove_workloads", [])
    known = tuple(merged.table["workloads"]) if isinstance(merged.table.get("workloads"), dict) else ()
    kept_here = layer.table.get("workloads", {})

    def report(found: str, allowed: str, suggestion: str | None = None) -> None:
        merged.problems.append(
            ContractProblem(
                file=layer.label, key="remove_workloads", found=found, allowed=allowed, suggestion=suggestion
            )
        )

    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        report(shown(names), 'a list of workload names, such as ["ray"]')
        return
    for name in dict.fromkeys(names):
        if name not in known:
            allowed = f"workloads of the contract it extends: {', '.join(known)}"
            report(shown(name), allowed, nearest(name, known))
        elif isinstance(kept_here, Mapping) and name in kept_here:
            report(shown(name), f"a workload that this file does not also write as [workloads.{name}]")
        else:
            merged.remove_workload(name)


def _parse(label: str, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        column = exc.start - (content.rfind(b"\n", 0, exc.start) + 1) + 1
        where = f"line {line}, column {column}"
        raise _error(label, where, "bytes that are not UTF-8", "TOML 1.0") from exc
    except tomllib.TOMLDecodeError as exc:
        match = _SYNTAX_ERROR.fullmatch(str(exc))
        if match is None:
            where, what = "(file)", str(exc)
        elif match["line"] is None:
            lines = content.decode().splitlines() or [""]
            where, what = f"line {len(lines)}, column {len(lines[-1]) + 1}", match["what"]
        else:
            where, what = f"line {match['line']}, column {match['column']}", match["what"]
        raise _error(label, where, f"a syntax error ({what})", "TOML 1.0") from exc


def _unreadable(exc: OSError | ValueError, reference: str | Path, layers: list[Layer]) -> ContractError:
    """What to say of a file that the caller, or the last of ``layers``, names and nobody can read."""
    why = (exc.strerror or "unreadable").lower() if isinstance(exc, OSError) else "not a path"
    allowed = f"a readable TOML file, or a shipped contract: {', '.join(SHIPPED)}"
    meant = nearest(Path(reference).stem, SHIPPED)
    if layers:
        return _error(layers[-1].label, "extends", f"{shown(reference)} ({why})", allowed, meant)
    return _error(str(reference), "(file)", why, allowed, meant)


def _error(file: str, key: str, found: str, allowed: str, suggestion: str | None = None) -> ContractError:
    problem = ContractProblem(file=file, key=key, found=found, allowed=allowed, suggestion=suggestion)
    return ContractError([problem])
