"""A tier under random faults and kills for as long as it takes: how many blocks came back with wrong bytes.

    pip install -e '.[gate]'
    python benchmarks/kv_soak.py --operations 1000000 --kills 200

An operation is one block looked up, stored, loaded, evicted or damaged. The tier talks to a valkey-server of
its own through a proxy that flips bits, cuts values short, resets, refuses and hangs; the server is killed
and started again meanwhile. Exit code 1 when anything came back wrong, or a job had no result.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fixtures.faults.catalog import BitFlip, BlackHole, ErrorReply, ResetMidReply, Truncate  # noqa: E402
from fixtures.faults.proxy import FaultProxy  # noqa: E402
from fixtures.kv_blocks import BlockRig, an_identity, block, bytes_of  # noqa: E402
from fixtures.targets.embedded import EmbeddedServer, resolve_executable  # noqa: E402
from inference_cache.errors import CacheError  # noqa: E402
from inference_cache.kv_offload import BlockId, BlockTier, Found  # noqa: E402

VALUE_BYTES = 1024
BLOCKS = 4000
BATCH = 64
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    options = parser.parse_args()
    rng = random.Random(options.seed)
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
        every = max(1, options.operations // max(1, options.kills))
        acted: Counter[str] = Counter()
        while (done := sum(soak.counts[name] for name in ("store", "load", "look", "evict", "damage"))) < (
            options.operations
        ) or soak.kills < options.kills:
            for _ in range(rng.randrange(20, 80)):
                soak.step()
            name = rng.choice(list(FAULTS))
            fault = FAULTS[name]()
            with proxy.fault(fault):
                for _ in range(2 if name == "hanging" else rng.randrange(2, 12)):
                    soak.step()
            acted[name] += fault.acted
            if soak.kills < options.kills and done >= soak.kills * every:
                soak.kill()
        rig.tier.drain()
        unanswered = rig._next - len(rig.collect()) - soak.counts["look"] // BATCH
        counters = dict(rig.tier.counters)
    print(f"seed {options.seed}, {time.monotonic() - began_s:.0f} s")
    print(f"operations {done}, kills {soak.kills}, faults acted {dict(acted)}")
    print(f"of them {dict(soak.counts)}")
    print(
        "; ".join(f"{operation} {reason}: {count}" for (operation, reason), count in sorted(counters.items()))
    )
    print(f"wrong bytes: {soak.wrong}; jobs without a result: {unanswered}")
    return int(bool(soak.wrong or unanswered))


if __name__ == "__main__":
    sys.exit(main())
