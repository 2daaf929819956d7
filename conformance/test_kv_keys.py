"""KV: which blocks share a key, and what a configuration becomes; judged without an engine.

What needs a real one is in ``test_kv_engine.py``; moving blocks in ``test_kv_tier.py``, under faults in
``test_kv_faults.py``.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fixtures.kv_blocks import BlockRig, an_identity, block
from fixtures.kv_configs import BAD_CONFIGS, GOOD_CONFIGS
from fixtures.kv_partition import PARTITIONS, Partition
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, check, clause, ensure
from inference_cache.errors import UsageError
from inference_cache.keyspace import Keyspace
from inference_cache.kv_offload import BlockId, Found, RunIdentity

Implementation = Callable[[str], Any]

PREFIX = "vllm:kv:"


def partitioned(make_tier: Any, row: Partition | None) -> tuple[RunIdentity, BlockId]:
    """Run and block of a row of the matrix; of the unchanged ones without a row."""
    identity = an_identity(**(row.run if row else {}))
    which = block(row.number if row else 0, group=row.group if row else 0)
    return identity, replace(which, scope=make_tier.scope_of(**(row.request if row else {})))


@clause("KV-03", needs={"write", "config"})
def test_blocks_share_a_key_only_when_all_is_equal(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """Whatever of a run, of a request or of a block differs, its key differs, under the workload's prefix;
    and a second process that describes the same run finds the first one's blocks, and one that describes
    another finds none.
    """
    make_tier = implementation("kv_offload")
    keyspace = Keyspace(PREFIX)
    keys = {"the same": make_tier.key_of(keyspace, *partitioned(make_tier, None))}
    for row in PARTITIONS:
        keys[row.name] = make_tier.key_of(keyspace, *partitioned(make_tier, row))
    for (one, first), (other, second) in itertools.combinations(keys.items(), 2):
        check(
            first != second,
            expected=f"blocks that differ in {one} / {other} have different keys",
            observed=f"both have {first!r}",
            evidence={"one": one, "other": other},
        )
    stray = [name for name, key in keys.items() if not key.startswith(PREFIX.encode())]
    check(
        not stray,
        expected=f"every key starts with {PREFIX}",
        observed=f"{stray[:3]} do not",
        evidence={"keys": len(keys), "outside_of_the_prefix": len(stray)},
    )
    again = make_tier.key_of(keyspace, *partitioned(make_tier, None))
    check(
        again == keys["the same"],
        expected="the same run, described anew, has the same keys",
        observed=f"{again!r} and {keys['the same']!r}",
    )
    server = servers.scaled()
    blocks = [block(number) for number in range(4)]
    items = [(each, slot) for slot, each in enumerate(blocks)]
    found: dict[str, int] = {}
    with BlockRig(make_tier, server.login_url()) as writer:
        stored = writer.store(items)
    ensure(stored.ok, f"nothing was stored to be found: {stored}")
    for name, identity in {
        "the same": an_identity(),
        "other weights": an_identity(weights="commit:2222"),
        "another dtype": an_identity(kv_dtype="fp8"),
        "another rank": an_identity(rank=1),
    }.items():
        with BlockRig(make_tier, server.login_url(), identity=identity) as reader:
            found[name] = reader.look(blocks, request="r").count(Found.HIT)
            wrong = reader.wrong(items, reader.load(items))
        wanted = len(blocks) if name == "the same" else 0
        check(
            found[name] == wanted and not wrong,
            expected=f"a process with {name} finds {wanted} of {len(blocks)} blocks",
            observed=f"it finds {found[name]}, and loads {wrong} with wrong bytes",
            evidence={"found": found[name], "wrong": wrong},
        )
    evidence.record(keys_compared=len(keys), pairs=len(keys) * (len(keys) - 1) // 2)


@clause("KV-04")
def test_the_tier_derives_the_same_keys_in_every_process(
    implementation: Implementation, evidence: Evidence
) -> None:
    """Processes with PYTHONHASHSEED 1, 2 and random derive the same keys for the same runs, requests and
    block hashes.
    """
    tier = implementation("kv_offload")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fixtures.kv_keys", f"{tier.__module__}:{tier.__qualname__}"],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
        )
        for seed in ("1", "2", "random")
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    ensure(not any(process.returncode for process in processes), "a process could not derive its keys")
    first, *others = [json.loads(output) for output in outputs]
    different = [name for name, key in first.items() if any(other[name] != key for other in others)]
    evidence.record(tier_processes_compared=len(processes), keys_compared=len(first))
    check(
        not different,
        expected="the same keys in each process",
        observed=f"{len(different)} of {len(first)} keys differ, such as that of {different[:1]}",
        evidence={"keys": len(first), "different": len(different)},
    )


@clause("KV-12")
def test_the_configuration_is_translated_or_corrected(
    implementation: Implementation, evidence: Evidence
) -> None:
    """Each good configuration becomes the arguments of vLLM's tiered offloading, as plain JSON; each bad one
    is refused with a message that names the key and what to write.
    """
    translate = implementation("kv_config")
    for good in GOOD_CONFIGS:
        try:
            made = translate(good.config, vllm_version=good.vllm)
        except UsageError as error:
            check(False, expected=f"{good.name} is accepted", observed=str(error))
        extra = made["kv_connector_extra_config"]
        tier = extra["secondary_tiers"][0]
        seen = {"kv_role": made["kv_role"], **extra, **tier}
        missed = {name: seen.get(name) for name, value in good.becomes.items() if seen.get(name) != value}
        check(
            not missed,
            expected=f"{good.name} becomes {dict(good.becomes)}",
            observed=f"it becomes {missed}",
            evidence={"configuration": good.name},
        )
        check(
            json.loads(json.dumps(made)) == made,
            expected="the configuration is plain JSON",
            observed=f"{made}",
        )
    for bad in BAD_CONFIGS:
        try:
            made = translate(bad.config, vllm_version=bad.vllm)
        except UsageError as error:
            missing = [word for word in bad.says if word not in str(error)]
            check(
                not missing,
                expected=f"{bad.name}: the message says {list(bad.says)}",
                observed=f"it lacks {missing}: {error}",
                evidence={"configuration": bad.name},
            )
            continue
        check(
            False,
            expected=f"{bad.name} is refused",
            observed=f"it becomes {made}",
            evidence={"configuration": bad.name},
        )
    evidence.record(good=len(GOOD_CONFIGS), bad=len(BAD_CONFIGS))
