"""Dashboards as PNGs: Grafana's own panels in a headless browser, asking a Prometheus that runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_cache.errors import UsageError

__all__ = ["Watched", "draw", "require_tools", "say"]

HERE = Path(__file__).resolve().parent
SOURCES = ("package.json", "page.jsx", "draw.mjs")
TOOLS = {
    "node": "apt-get install nodejs npm",
    "npm": "apt-get install nodejs npm",
    "chromium": "apt-get install chromium",
    "prometheus": "apt-get install prometheus",
    "prometheus-redis-exporter": "apt-get install prometheus-redis-exporter",
}
WIDTH_PX = 1400


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a Prometheus has seen."""

    prometheus_url: str
    began_s: float
    """Seconds since the epoch, of the left edge; the right one is now."""
    step_s: int
    """Between two points; Grafana's ``$__rate_interval`` is four of them."""


def say(what: str) -> None:
    """Prints it, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def require_tools() -> None:
    """Raises:
    UsageError: a program or a package is missing; with how to get it.
    """
    for tool, install in TOOLS.items():
        if shutil.which(tool) is None:
            raise UsageError(f"{tool} is not here: {install}")
    try:
        import PIL.Image  # noqa: F401 - asked for only here, so that all the rest works without it
    except ImportError as error:
        raise UsageError("Pillow is not here: pip install 'pillow>=11,<14'") from error


def draw(boards: Mapping[str, str], watched: Watched, *, out: Path, modules: Path | None = None) -> list[str]:
    """One PNG in ``out`` for each of ``boards`` (JSON by file name); what could not be drawn, in words.

    ``modules`` keeps Grafana's packages from npm for the next time.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dashboard-pictures-") as name:
        folder = Path(name)
        modules = modules or folder / "node"
        _install(modules)
        (folder / "dashboards").mkdir()
        for board, text in boards.items():
            (folder / "dashboards" / board).write_text(text, "utf-8")
        pictures = {board: (out / f"{Path(board).stem}.png").absolute() for board in boards}
        job = folder / "job.json"
        job.write_text(json.dumps(_job(pictures, watched, folder / "dashboards")), "utf-8")
        say("draw")
        done = subprocess.run(
            ["node", "draw.mjs", str(job)],
            cwd=modules,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=600,
        )
        for picture in pictures.values():
            _shrink(picture)
    return [problem for line in done.stdout.splitlines() for problem in _told(json.loads(line))]


def _install(modules: Path) -> None:
    """Grafana's packages from npm, beside our two scripts."""
    modules.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        shutil.copyfile(HERE / name, modules / name)
    if not (modules / "node_modules").exists():
        say("npm install")
        subprocess.run(
            ["npm", "install", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=modules,
            check=True,
            timeout=600,
        )


def _job(pictures: Mapping[str, Path], watched: Watched, dashboards: Path) -> dict[str, Any]:
    variables = dict.fromkeys(("namespace", "job", "instance", "prefix", "engine"), ".*")
    return {
        "dashboards": str(dashboards),
        "chromium": shutil.which("chromium"),
        "width_px": WIDTH_PX,
        "question": {
            "prometheus": watched.prometheus_url,
            "start_s": int(watched.began_s),
            "end_s": int(time.time()),
            "step_s": watched.step_s,
            "theme": "dark",
            # As Grafana has it: four times the scrape interval.
            "variables": {**variables, "__rate_interval": f"{4 * watched.step_s}s"},
        },
        "drawings": [{"dashboard": board, "picture": str(picture)} for board, picture in pictures.items()],
    }


def _shrink(picture: Path) -> None:
    """Few colours are enough for lines on a dark ground."""
    from PIL import Image

    with Image.open(picture) as image:
        image.convert("RGB").quantize(colors=224, dither=Image.Dither.NONE).save(picture, optimize=True)


def _told(board: Mapping[str, Any]) -> list[str]:
    """Says what is on a picture, and gives what could not be drawn."""
    empty = [panel["title"] for panel in board["panels"] if not panel["series"]]
    say(f"{board['dashboard']}: {len(board['panels'])} panels, without data: {', '.join(empty) or 'none'}")
    errors = [f"{panel['title']}: {panel['error']}" for panel in board["panels"] if panel["error"]]
    return [f"{board['dashboard']}: {error}" for error in (*errors, *board["problems"])]
