"""``python -m alerts``: docs/alerts.md and the heads of runbooks; rules are made by ``render``."""

from __future__ import annotations

from pathlib import Path

from alerts.documents import alert_table, by_name, runbook
from alerts.generate import all_alerts
from alerts.model import Context
from inference_cache.contract import load


def pages(root: Path) -> dict[Path, str]:
    """Every page as it should be, by its path."""
    contract = load()
    made = {root / "docs" / "alerts.md": alert_table(contract)}
    for name, rules in by_name(all_alerts(Context(contract=contract))).items():
        path = root / "docs" / "runbooks" / f"{name}.md"
        written = path.read_text("utf-8") if path.exists() else ""
        made[path] = runbook(rules, written)
    return made


def main() -> None:
    """Write the pages that differ."""
    for path, text in pages(Path(__file__).parents[1]).items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
