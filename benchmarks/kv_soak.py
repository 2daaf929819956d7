"""A tier under random faults and kills for as long as it takes: how many blocks came back with wrong bytes.

    pip install -e '.[gate]'
    python benchmarks/kv_soak.py --operations 1000000 --kills 200 --write
    python benchmarks/kv_soak.py --engine --kills 200 --write       # where vLLM is

An operation is one block looked up, stored, loaded, evicted or damaged. The tier talks to a valkey-server of
its own through a proxy that flips bits, cuts values short, resets, refuses and hangs; the server is killed
and started again meanwhile. Exit code 1 when anything came back wrong, or a job had no result.

With ``--engine`` one real vLLM engine on CPU generates all the while that its server is killed and started
again; it must not fail, and each answer must have the tokens of an engine without interruptions. The server
keeps its blocks over a kill, and some are evicted, so that blocks are loaded and stored throughout.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kv_results import write_section  # noqa: E402
from fixtures.engines.vllm_process import VllmProcess, cpu_config  # noqa: E402
from fixtures.faults.catalog import (  # noqa: E402
    BitFlip,
    BlackHole,
    ErrorReply,
    Latency,
    ResetMidReply,
    Truncate,
)
from fixtures.faults.proxy import FaultProxy  # noqa: E402
from fixtures.kv_blocks import BlockRig, an_identity, block, bytes_of  # noqa: E402
from fixtures.targets.embedded import EmbeddedServer, resolve_executable  # noqa: E402
from inference_cache.errors import CacheError  # noqa: E402
from inference_cache.kv_offload import BlockId, BlockTier, Found  # noqa: E402

VALUE_BYTES = 1024
BLOCKS = 4000
BATCH = 64
REQUEST_S = 120.0
FAULTS = {
    "bits flipped": lambda: BitFlip(over_bytes=90),
    "cut short": lambda: Truncate(over_bytes=90),
    "reset in mid-reply": lambda: ResetMidReply(after_bytes=700, commands="all"),
    "full": lambda: ErrorReply(code="OOM", message="command not allowed", commands="writes"),
    "loading": lambda: ErrorReply(code="LOADING", message="loading the dataset"),
    "hanging": BlackHole,
}


class Soak:
    def __init__(self, rig: BlockRig, server: EmbeddedServer, proxy: FaultProxy, rng: random.Random) -> None:
        self.rig = rig
        self.server = server
        self.proxy = proxy
        self.rng = rng
        self.blocks = [block(number) for number in range(BLOCKS)]
        self.content = functools.cache(lambda which: bytes_of(rig.identity, which))
        self.counts: Counter[str] = Counter()
        self.wrong = 0
        self.kills = 0

    def some(self) -> list[tuple[BlockId, int]]:
        # Mostly the first blocks, so that they are there and come back.
        top = self.rng.choice((200, 200, BLOCKS))
        return [(each, slot) for slot, each in enumerate(self.rng.sample(self.blocks[:top], BATCH))]

    def step(self) -> None:
        items = self.some()
        what = self.rng.choices(("store", "load", "look", "evict", "damage"), (30, 45, 15, 4, 6))[0]
        self.counts[what] += len(items)
        if what == "store":
            for which, slot in items:
                self.rig.put(slot, self.content(which))
            self.rig.tier.submit_store(self.number(), items)
            self.rig.result(self.last)
        elif what == "load":
            loaded = self.rig.load(items)
            for (which, slot), done in zip(items, loaded.done, strict=True):
                self.counts["loaded"] += done
                self.wrong += done and self.rig.row(slot) != self.content(which)
        elif what == "look":
            request = str(self.number())
            found = self.rig.look([which for which, _ in items], request=request)
            self.counts["found"] += found.count(Found.HIT)
            self.rig.tier.forget(request)
        else:
            self.behind_its_back(what, [self.rig.key(which) for which, _ in items])

    def behind_its_back(self, what: str, keys: list[bytes]) -> None:
        try:
            with self.server.connect(deadline_s=2.0) as client:
                if what == "evict":
                    client.unlink(*keys)
                    return
                values = client.mget(keys)
                for key, value in zip(keys[1:], values, strict=False):
                    if value is not None and self.rng.random() < 0.2:
                        client.set(key, self.rng.choice((value, value[:-1], b"x" * len(value))), px=60_000)
        except CacheError:
            self.counts["while the server was down"] += 1

    def number(self) -> int:
        self.rig._next += 1
        self.last = self.rig._next
        return self.last

    def kill(self) -> None:
        self.server.crash()
        for _ in range(self.rng.randrange(4)):
            self.step()
        self.server.start()
        self.kills += 1


class Killer(threading.Thread):
    """Kills a server and starts it again so many times, each in the midst of a request."""

    def __init__(self, server: EmbeddedServer, *, kills: int, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._left = kills
        self._rng = rng
        self.request_began = threading.Event()
        """To be set by whoever makes the requests."""
        self.request_took_s = 0.2
        """As long as the last one."""
        self.kills = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while self.kills < self._left:
                self.request_began.clear()
                if not self.request_began.wait(REQUEST_S):
                    raise TimeoutError(f"no request began within {REQUEST_S:g} s")
                time.sleep(self._rng.uniform(0.0, self.request_took_s))
                self._server.crash()
                time.sleep(self._rng.uniform(0.0, 0.4))
                self._server.start()
                self.kills += 1
        except Exception as error:  # told by whoever joins
            self.error = error


def evict_some(server: EmbeddedServer, rng: random.Random) -> int:
    """Takes some blocks from the server, if it is up; returns how many."""
    try:
        with server.connect(deadline_s=2.0) as client:
            keys = [key for key in client.scan_iter(match=b"vllm:kv:*:0:*", count=1000) if rng.random() < 0.2]
            return client.unlink(*keys) if keys else 0
    except CacheError:
        return 0


def engine_soak(kills: int, seed: int) -> tuple[str, bool]:
    """What happened, as text, and whether all was right."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(3, 512) for _ in range(rng.randrange(100, 1000))] for _ in range(12)]
    counts: Counter[str] = Counter()
    began_s = time.monotonic()
    slowest_s = 0.0
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(
            executable=resolve_executable(None), settings={"save": "", "appendonly": "yes"}
        ) as server,
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
        VllmProcess(
            model=Path(folder) / "model",
            make={"name": "llama", "seed": seed % 1000},
            kv_transfer_config=cpu_config(
                f"valkey://127.0.0.1:{proxy.port}",
                after_reset="same_keys",
                first_pause_s=0.02,
                longest_pause_s=0.1,
            ),
        ) as engine,
        # Each command takes a little, so that many of the kills meet one under way.
        proxy.fault(Latency(seconds=0.01)),
    ):
        expected = engine.generate(prompts)
        engine.counters()
        killer = Killer(server, kills=kills, rng=random.Random(seed + 1))
        killer.start()
        while killer.is_alive():
            number = rng.randrange(len(prompts))
            engine.reset()
            counts["evicted"] += evict_some(server, rng) if rng.random() < 0.3 else 0
            killer.request_began.set()
            [answer] = engine.generate([prompts[number]], within_s=REQUEST_S)
            counts["requests"] += 1
            counts["different"] += answer.tokens != expected[number].tokens
            killer.request_took_s = answer.took_s
            slowest_s = max(slowest_s, answer.took_s)
        killer.join()
        if killer.error is not None:
            raise killer.error
        counters = engine.counters()
        engine.reset()
        afterwards = engine.generate(prompts)
        counts["different"] += sum(
            one.tokens != other.tokens for one, other in zip(expected, afterwards, strict=True)
        )
        recovered = engine.counters().get(("load", "hit"), 0) - counters.get(("load", "hit"), 0)
    text = (
        f"Seed {seed}, {time.monotonic() - began_s:.0f} s: {killer.kills} kills during "
        f"{counts['requests']} requests of one engine that never ended; {counts['different']} answers with "
        f"other tokens, 0 failed. The slowest answer took {slowest_s:.2f} s. {counts['evicted']} blocks were "
        f"evicted meanwhile; afterwards {recovered} blocks were loaded by the same engine.\n\n"
        f"Blocks: {by_reason(counters)}."
    )
    return text, not counts["different"] and recovered > 0


def by_reason(counters: Mapping[tuple[str, str], int]) -> str:
    return ", ".join(
        f"{operation} {reason} {count}"
        for (operation, reason), count in sorted(counters.items())
        if not operation.endswith("_bytes")
    )


def tier_soak(operations: int, kills: int, seed: int) -> tuple[str, bool]:
    """What happened, as text, and whether all was right."""
    rng = random.Random(seed)
    began_s = time.monotonic()
    identity = an_identity(value_bytes=VALUE_BYTES)
    settings = {"lookup_deadline_s": 0.1, "load_deadline_s": 0.2, "store_deadline_s": 0.2}
    with (
        EmbeddedServer(
            executable=resolve_executable(None), settings={"save": "", "appendonly": "no"}
        ) as server,
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
        BlockRig(
            BlockTier,
            f"valkey://127.0.0.1:{proxy.port}",
            slots=BATCH,
            identity=identity,
            first_pause_s=0.02,
            longest_pause_s=0.1,
            **settings,
        ) as rig,
    ):
        soak = Soak(rig, server, proxy, rng)
        every = max(1, operations // max(1, kills))
        acted: Counter[str] = Counter()
        while (done := sum(soak.counts[name] for name in ("store", "load", "look", "evict", "damage"))) < (
            operations
        ) or soak.kills < kills:
            for _ in range(rng.randrange(20, 80)):
                soak.step()
            name = rng.choice(list(FAULTS))
            fault = FAULTS[name]()
            with proxy.fault(fault):
                for _ in range(2 if name == "hanging" else rng.randrange(2, 12)):
                    soak.step()
            acted[name] += fault.acted
            if soak.kills < kills and done >= soak.kills * every:
                soak.kill()
        rig.tier.drain()
        unanswered = rig._next - len(rig.collect()) - soak.counts["look"] // BATCH
        counters = dict(rig.tier.counters)
    text = (
        f"Seed {seed}, {time.monotonic() - began_s:.0f} s: {done} operations, {soak.kills} kills, faults "
        f"that acted: {dict(acted)}. Blocks with wrong bytes: {soak.wrong}; jobs without a result: "
        f"{unanswered}."
        f"\n\nOperations: {dict(soak.counts)}. Blocks: {by_reason(counters)}."
    )
    return text, not soak.wrong and not unanswered


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--engine", action="store_true", help="kills only, with a real vLLM engine on CPU")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.kv_offload.md")
    options = parser.parse_args()
    if options.engine:
        heading, arguments = "Kills during an engine's run", f"--engine --kills {options.kills}"
        text, right = engine_soak(options.kills, options.seed)
    else:
        heading = "Faults and kills of a tier"
        arguments = f"--operations {options.operations} --kills {options.kills}"
        text, right = tier_soak(options.operations, options.kills, options.seed)
    text += (
        f"\n\nPython {platform.python_version()}, {os.cpu_count()} cores. Command: "
        f"`python benchmarks/kv_soak.py {arguments} --seed {options.seed} --write`."
    )
    print(text)
    if options.write:
        write_section(heading, text)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
