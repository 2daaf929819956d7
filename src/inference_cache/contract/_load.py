"""From TOML files to a :class:`Contract`, or to the list of everything that is wrong with them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import hashlib
import json
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import TypeAdapter

from inference_cache.contract._checks import contradictions
from inference_cache.contract._layers import (
    SHIPPED,
    KeyPath,
    Merged,
    dotted,
    merge,
    nearest,
    read_layers,
    shown,
)
from inference_cache.contract._model import Clause, Contract, Deadlines, Instance, Waiver, Workload
from inference_cache.contract._rules import NAME, RULES, WORKLOAD_NAME, Rule
from inference_cache.contract._sizes import parse_size
from inference_cache.errors import ContractError, ContractProblem

__all__ = ["load"]

_LONGEST_WAIVER: Final = dt.timedelta(days=366)


def load(source: str | Path | None = None, *, today: dt.date | None = None) -> Contract:
    """The contract of a shipped name or a TOML file; ``adr_0023`` without one.

    A file extends ``adr_0023``, or what its ``extends`` names, and overrides values key by key. An expired
    waiver loads, for the verdict to report; one that ends more than 366 days after ``today`` (by default the
    date in UTC) does not.

    Raises:
        ContractError: with every mistake of the file and of those that it extends.
    """
    merged = merge(read_layers(source))
    draft = _Draft(merged)
    name = draft.name()
    instance = draft.table(("instance",), Instance)
    deadlines = draft.table(("deadlines",), Deadlines)
    workloads = draft.workloads()
    clauses = {id_: draft.table(("clauses", id_), Clause) for id_ in merged.table["clauses"]}
    waivers = draft.waivers(clauses, today or dt.datetime.now(dt.UTC).date())
    for complaint in contradictions(instance, workloads):
        draft.report(merged.written_last(complaint.between), complaint.found, complaint.allowed)
    if draft.problems:
        raise ContractError(draft.problems)

    contract = Contract(
        name=name,
        sha256="",
        instance=Instance(**_by_field(Instance, instance)),
        workloads=MappingProxyType(
            {name: Workload(name=name, **_by_field(Workload, values)) for name, values in workloads.items()}
        ),
        deadlines=Deadlines(**_by_field(Deadlines, deadlines)),
        clauses=MappingProxyType(
            {
                id_: Clause(id=id_, group=id_.partition("-")[0], **_by_field(Clause, values))
                for id_, values in clauses.items()
            }
        ),
        waivers=tuple(Waiver(**_by_field(Waiver, values)) for values in waivers),
    )
    return dataclasses.replace(contract, sha256=_digest(contract))


class _Draft:
    """Reads typed values out of merged TOML tables and collects what is wrong with them."""

    def __init__(self, merged: Merged) -> None:
        self._merged = merged
        self.problems = list(merged.problems)

    def report(
        self,
        path: KeyPath,
        found: str,
        allowed: str,
        *,
        suggestion: str | None = None,
        file: str | None = None,
    ) -> None:
        self.problems.append(
            ContractProblem(
                file=file or self._merged.file_of(path),
                key=dotted(path),
                found=found,
                allowed=allowed,
                suggestion=suggestion,
            )
        )

    def name(self) -> str:
        name = self._merged.table["name"]
        if not isinstance(name, str) or not NAME.accepts(name):
            self.report(("name",), shown(name), NAME.allowed)
            return ""
        if name in SHIPPED and not self._merged.layers[-1].shipped:
            self.report(("name",), shown(name), "a name of its own: this one belongs to a shipped contract")
        return name

    def table(self, path: KeyPath, cls: type, *, forgive_missing: bool = False) -> dict[str, Any]:
        """The right values of a table, by TOML key; the wrong ones are reported and left out."""
        table: Any = self._merged.table
        for name in path:
            table = table[name]
        return self._values(table, path, cls, forgive_missing=forgive_missing)

    def workloads(self) -> dict[str, dict[str, Any]]:
        path = ("workloads",)
        tables = self._merged.table["workloads"]
        if not isinstance(tables, Mapping):
            self.report(path, shown(tables), "tables, such as [workloads.vllm_kv]")
            return {}
        if not tables:
            topmost = self._merged.layers[-1].label
            self.report(("remove_workloads",), "every workload", "at least one that stays", file=topmost)
        workloads = {}
        for name, table in tables.items():
            others = [other for other in tables if other != name]
            meant = nearest(name, others)
            if not WORKLOAD_NAME.accepts(name):
                self.report((*path, name), shown(name), WORKLOAD_NAME.allowed, suggestion=meant)
                continue
            missing = _required(Workload) - set(table) if isinstance(table, Mapping) else set()
            if meant and missing:
                # A misspelt override looks like a new workload: one mistake, not one per missing key.
                self.report(
                    (*path, name),
                    f"a new workload without {', '.join(k for k in RULES[Workload] if k in missing)}",
                    f"all keys of a new workload, or the name of one to override: {', '.join(others)}",
                    suggestion=meant,
                )
                self.table((*path, name), Workload, forgive_missing=True)
                continue
            workloads[name] = self.table((*path, name), Workload)
        return workloads

    def waivers(self, clauses: Mapping[str, object], today: dt.date) -> list[dict[str, Any]]:
        """The waivers of all files, in the order written."""
        waivers: list[dict[str, Any]] = []
        for layer in self._merged.layers:
            tables = layer.table.get("waivers", [])
            if not isinstance(tables, list):
                self.report(("waivers",), shown(tables), "tables, each headed [[waivers]]", file=layer.label)
                continue
            for number, table in enumerate(tables):
                path = (f"waivers[{number}]",)
                waiver = self._values(table, path, Waiver, file=layer.label)
                self._check_waiver(waiver, path, layer.label, clauses, today)
                if "clause" in waiver and waiver["clause"] in [w.get("clause") for w in waivers]:
                    found = f"{shown(waiver['clause'])} a second time"
                    self.report((*path, "clause"), found, "one waiver per clause", file=layer.label)
                waivers.append(waiver)
        return waivers

    def _check_waiver(
        self,
        waiver: Mapping[str, Any],
        path: KeyPath,
        file: str,
        clauses: Mapping[str, object],
        today: dt.date,
    ) -> None:
        if "clause" in waiver and waiver["clause"] not in clauses:
            name = waiver["clause"].upper()
            near = difflib.get_close_matches(name, clauses, cutoff=0.0)
            self.report(
                (*path, "clause"),
                shown(waiver["clause"]),
                f"the id of a clause; the nearest are {', '.join(near)}",
                suggestion=nearest(name, clauses),
                file=file,
            )
        if "expires" in waiver and waiver["expires"] - today > _LONGEST_WAIVER:
            latest = today + _LONGEST_WAIVER
            self.report(
                (*path, "expires"),
                str(waiver["expires"]),
                f"a date up to {latest} ({_LONGEST_WAIVER.days} days from today): a waiver is for a time",
                file=file,
            )

    def _values(
        self,
        table: object,
        path: KeyPath,
        cls: type,
        *,
        file: str | None = None,
        forgive_missing: bool = False,
    ) -> dict[str, Any]:
        rules = RULES[cls]
        if not isinstance(table, Mapping):
            self.report(path, shown(table), f"a table with {', '.join(rules)}", file=file)
            return {}
        for key in table:
            if key not in rules:
                # Its value stays out of the message: an unknown key may hold a secret.
                self.report(
                    (*path, key),
                    "an unknown key",
                    f"one of {', '.join(rules)}",
                    suggestion=nearest(key, rules),
                    file=file,
                )
        values: dict[str, Any] = {}
        required = _required(cls)
        for key, rule in rules.items():
            here = (*path, key)
            if key in table:
                try:
                    value = _typed(cls, key, rule, table[key])
                except ValueError:
                    self.report(here, shown(table[key]), rule.allowed, file=file)
                else:
                    values[key] = value
            elif key not in required:
                values[key] = None
            elif not forgive_missing and nearest(key, set(table) - set(rules)) is None:
                # A required key that is missing beside a similar unknown one is that one, misspelt.
                self.report(here, "nothing", rule.allowed, file=file)
        return values


def _typed(cls: type, key: str, rule: Rule, raw: object) -> Any:
    """The value as its field's type.

    Raises:
        ValueError: the type is wrong, or the rule does not accept the value.
    """
    field = _fields(cls)[key]
    if field.endswith("_bytes"):
        if not isinstance(raw, str) or raw.isdecimal():
            raise ValueError("a size carries its unit")
        raw = parse_size(raw)
    hint, optional = _hint(cls, field)
    # TOML has no null; this is how an override says that a value of its base no longer holds.
    if optional and raw == "none":
        return None
    # From JSON, strict mode takes arrays for tuples and text for enums and dates, but not "3600" for 3600.
    value = _adapter(hint).validate_json(json.dumps(raw, default=str), strict=True)
    if not rule.accepts(value):
        raise ValueError(rule.allowed)
    return value


@cache
def _fields(cls: type) -> Mapping[str, str]:
    """Field names by TOML key: a size carries its unit in the value, so its key has no ``_bytes``."""
    return {field.name.removesuffix("_bytes"): field.name for field in dataclasses.fields(cls)}


@cache
def _required(cls: type) -> frozenset[str]:
    without_default = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    return frozenset(key for key in RULES[cls] if _fields(cls)[key] in without_default)


@cache
def _hint(cls: type, field: str) -> tuple[Any, bool]:
    """The field's type, and whether None is among it."""
    hint = typing.get_type_hints(cls)[field]
    return hint, type(None) in typing.get_args(hint)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _by_field(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {_fields(cls)[key]: value for key, value in values.items()}


def _digest(contract: Contract) -> str:
    def plain(value: object) -> object:
        return sorted(value) if isinstance(value, frozenset) else str(value)

    effective = {
        "instance": dataclasses.asdict(contract.instance),
        "workloads": {name: dataclasses.asdict(w) for name, w in contract.workloads.items()},
        "deadlines": dataclasses.asdict(contract.deadlines),
        "clauses": {clause_id: dataclasses.asdict(c) for clause_id, c in contract.clauses.items()},
        "waivers": [dataclasses.asdict(w) for w in sorted(contract.waivers, key=lambda w: w.clause)],
    }
    canonical = json.dumps(effective, sort_keys=True, separators=(",", ":"), default=plain)
    return hashlib.sha256(canonical.encode()).hexdigest()
