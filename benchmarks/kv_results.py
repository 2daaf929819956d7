"""The sections of ``RESULTS.kv_offload.md``: each benchmark replaces its own and leaves the others."""

from __future__ import annotations

import re
from pathlib import Path

PLACE = Path(__file__).parent / "RESULTS.kv_offload.md"
TITLE = "# The KV tier\n"


def write_section(heading: str, text: str, *, place: Path = PLACE) -> None:
    """Puts ``text`` under ``## heading``, at the end where that is new."""
    content = place.read_text("utf-8") if place.exists() else TITLE
    section = f"## {heading}\n\n{text.strip()}\n"
    found = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", content, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        content = f"{content.rstrip()}\n\n{section}"
    else:
        after = content[found.end() :]
        content = content[: found.start()] + section + (f"\n{after}" if after else "")
    place.write_text(content, "utf-8")
