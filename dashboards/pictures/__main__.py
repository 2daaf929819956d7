"""``python -m dashboards.pictures --out docs/img/dashboards``: remake the pictures."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from alerts import generate as alerts
from dashboards import generate as dashboards
from dashboards.pictures._story import live_through
from fixtures.pressure import PressureRun, judged
from fixtures.targets.configuration import server_settings
from fixtures.targets.embedded import EmbeddedServer, resolve_executable
from inference_cache.contract import Contract, load
from inference_cache.errors import UsageError

HERE = Path(__file__).resolve().parent
SOURCES = ("package.json", "page.jsx", "draw.mjs")
TOOLS = {
    "node": "apt-get install nodejs npm",
    "npm": "apt-get install nodejs npm",
    "chromium": "apt-get install chromium",
    "prometheus": "apt-get install prometheus",
    "prometheus-redis-exporter": "apt-get install prometheus-redis-exporter",
}
# The shipped contract, scaled down to what fills up in a minute.
CONTRACT = """
extends = "adr_0023"
[instance]
memory_request = "64mb"
memory_limit = "128mb"
maxmemory = "64mb"
"""
# Rules look back for minutes and hours; the run lasts minutes.
TIME_FACTOR = 0.1
SCRAPE_INTERVAL_S = 5
WIDTH_PX = 1400


def main() -> int:
    options = _options()
    for tool, install in TOOLS.items():
        if shutil.which(tool) is None:
            raise UsageError(f"{tool} is not here: {install}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dashboard-pictures-")))
        modules = options.modules or folder / "node"
        _install(modules)
        contract_file = folder / "contract.toml"
        contract_file.write_text(CONTRACT, "utf-8")
        contract = load(str(contract_file))
        rules = _write(alerts.files(contract, time_factor=TIME_FACTOR), folder / "alerts", only="rules/")
        boards = _write(dashboards.files(contract), folder / "dashboards")
        _say("the gate judges an embedded server")
        verdict = judged(folder / "gate", "--group", "CFG", "--group", "ISO")
        server = stack.enter_context(EmbeddedServer(resolve_executable(None), server_settings(contract)))
        run = stack.enter_context(
            PressureRun(
                server,
                contract,
                rng=random.Random(options.seed),
                gate_metrics=verdict,
                contract_file=contract_file,
                scrape_interval_s=SCRAPE_INTERVAL_S,
                rule_files=tuple(rules),
            )
        )
        live_through(run, server, speed=options.speed, say=_say)
        drawn = _draw(run, boards, modules, folder, options.out)
    return _report(drawn, contract)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dashboards.pictures", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the PNGs")
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="N", help="divides the time that it takes"
    )
    parser.add_argument("--seed", type=int, default=23, metavar="N", help="of the load (default: 23)")
    parser.add_argument(
        "--modules", type=Path, metavar="DIR", help="keeps Grafana's npm packages for the next time"
    )
    return parser.parse_args()


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def _install(modules: Path) -> None:
    """Grafana's packages from npm, beside our two scripts."""
    modules.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        shutil.copyfile(HERE / name, modules / name)
    if not (modules / "node_modules").exists():
        _say("npm install")
        subprocess.run(
            ["npm", "install", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=modules,
            check=True,
            timeout=600,
        )


def _write(files: dict[str, str], folder: Path, *, only: str = "") -> list[Path]:
    written = []
    for name, text in files.items():
        if name.startswith(only):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            written.append(path)
    return written


def _draw(
    run: PressureRun, boards: list[Path], modules: Path, folder: Path, out: Path
) -> list[dict[str, Any]]:
    """One PNG for each dashboard; what node said about each."""
    out.mkdir(parents=True, exist_ok=True)
    variables = dict.fromkeys(("namespace", "job", "instance", "prefix", "engine"), ".*")
    drawings = [
        {"dashboard": board.name, "picture": str((out / f"{board.stem}.png").absolute())} for board in boards
    ]
    job = {
        "dashboards": str(boards[0].parent),
        "chromium": shutil.which("chromium"),
        "width_px": WIDTH_PX,
        "question": {
            "prometheus": run.prometheus.url,
            "start_s": int(run.began_s),
            "end_s": int(time.time()),
            "step_s": SCRAPE_INTERVAL_S,
            "theme": "dark",
            # As Grafana has it: four times the scrape interval.
            "variables": {**variables, "__rate_interval": f"{4 * SCRAPE_INTERVAL_S}s"},
        },
        "drawings": drawings,
    }
    (folder / "job.json").write_text(json.dumps(job), "utf-8")
    _say("draw")
    done = subprocess.run(
        ["node", "draw.mjs", str(folder / "job.json")],
        cwd=modules,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    for drawing in drawings:
        _shrink(Path(drawing["picture"]))
    return [json.loads(line) for line in done.stdout.splitlines()]


def _shrink(picture: Path) -> None:
    """Few colours are enough for lines on a dark ground."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("Pillow is not here: pip install 'pillow>=11,<13'") from error

    with Image.open(picture) as image:
        image.convert("RGB").quantize(colors=224, dither=Image.Dither.NONE).save(picture, optimize=True)


def _report(drawn: list[dict[str, Any]], contract: Contract) -> int:
    """What was drawn; 1 when a panel could not be."""
    broken = 0
    for board in drawn:
        empty = [panel["title"] for panel in board["panels"] if not panel["series"]]
        errors = [f"{panel['title']}: {panel['error']}" for panel in board["panels"] if panel["error"]]
        errors += board["problems"]
        broken += len(errors)
        _say(
            f"{board['dashboard']}: {len(board['panels'])} panels, without data: {', '.join(empty) or 'none'}"
        )
        for error in errors:
            print(f"  {error}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
