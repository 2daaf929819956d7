"""The contract as a file inside the cluster: what gate and exporter there hold the server against."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from enum import Enum
from typing import Any

from deploy._names import Names
from deploy._yaml import Manifest
from inference_cache.contract import DEFAULT, SHIPPED, Contract, format_size, load

__all__ = ["contract_config", "contract_toml"]

_SERVER_SIZES = frozenset({"maxmemory", "chunk", "value_min", "value_max"})
"""Sizes that the server is configured with, written in its own units."""


def contract_config(contract: Contract, names: Names) -> Manifest:
    """The ConfigMap that holds :func:`contract_toml`."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(names.contract, "contract", of=names.server),
        "data": {"contract.toml": contract_toml(contract)},
    }


def contract_toml(contract: Contract) -> str:
    """The contract as a file that ``load`` reads into the same values, so with the same ``sha256``.

    It says only what differs from a shipped contract. A shipped one's name is taken, so the file has another.
    """
    shipped = contract.name if contract.name in SHIPPED else DEFAULT
    base = load(shipped)
    name = f"{contract.name}-in-cluster" if contract.name in SHIPPED else contract.name
    lines = [f"name = {json.dumps(name)}", f"extends = {json.dumps(shipped)}"]
    if removed := [name for name in base.workloads if name not in contract.workloads]:
        lines.append(f"remove_workloads = {json.dumps(removed)}")
    lines += _table("instance", contract.instance, base.instance)
    for workload in contract.workloads.values():
        lines += _table(f"workloads.{workload.name}", workload, base.workloads.get(workload.name))
    lines += _table("deadlines", contract.deadlines, base.deadlines)
    for waiver in contract.waivers:
        if waiver not in base.waivers:
            lines += ["", "[[waivers]]"]
            lines += [f"{field.name} = {_value(getattr(waiver, field.name))}" for field in _of(waiver)]
    return "\n".join(lines) + "\n"


def _of(part: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(part)


def _table(title: str, part: Any, base: Any) -> Iterator[str]:
    """The table with the keys in which ``part`` differs from ``base``, or with all where that is None."""
    pairs = [
        (field.name, getattr(part, field.name))
        for field in _of(part)
        if field.name != "name" and (base is None or getattr(part, field.name) != getattr(base, field.name))
    ]
    if pairs:
        yield ""
        yield f"[{title}]"
        for name, value in pairs:
            key = name.removesuffix("_bytes")
            if name.endswith("_bytes"):
                value = format_size(value, units="valkey" if key in _SERVER_SIZES else "kubernetes")
                value = f"{value}b" if value.isdecimal() else value
            yield f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    match value:
        case None:
            return '"none"'
        case Enum():
            return json.dumps(value.value)
        case bool() | int() | float() | str():
            return json.dumps(value, ensure_ascii=False)
        case tuple():
            return json.dumps(list(value), ensure_ascii=False)
    return str(value.isoformat())
