"""Manifests as text that people read: keys in the order they were given, scripts as blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference_cache.errors import MissingExtra

try:
    import yaml
except ImportError as error:
    raise MissingExtra(module="yaml", extra="observability") from error

__all__ = ["Manifest", "to_yaml"]

Manifest = Mapping[str, Any]


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        # A label set that two objects share is written twice: anchors are for machines.
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(*documents: Manifest, comment: str = "") -> str:
    """The documents as one file, the comment above them."""
    text = yaml.dump_all(
        [dict(document) for document in documents],
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=110,
    )
    return "".join(f"# {line}\n" for line in comment.splitlines()) + text
