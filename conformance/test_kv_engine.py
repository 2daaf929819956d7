"""KV: a real vLLM engine, on CPU, whose blocks go through the tier.

Engines run in processes of their own, one prompt at a time: batches of another composition change the last
bits of what they compute. That something was loaded, and not computed anew, is counted at the tier.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fixtures.availability import FAULTS
from fixtures.engines.vllm_process import PATIENT, Answer, VllmProcess, cpu_config
from fixtures.faults.catalog import Latency, ResetMidReply
from fixtures.faults.proxy import FaultProxy
from fixtures.kv_blocks import an_identity, block
from fixtures.observe import wait_for
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, check, clause, ensure
from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.kv_offload import JobResult

Implementation = Callable[[str], Any]

MIB = 1024 * 1024
BLOCK_TOKENS = 32
VOCABULARY = 512
SERVER_BYTES = 256 * MIB
COUNTERS = ("hit", "miss", "checksum", "foreign", "short", "long")


def some_prompts(rng: random.Random, *lengths: int) -> list[list[int]]:
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def core_of(implementation: Implementation) -> str:
    """The tier under judgment, as the engine's process can import it."""
    tier = implementation("kv_offload")
    return f"{tier.__module__}:{tier.__qualname__}"


def block_keys(client: Client) -> list[bytes]:
    """The keys of all stored blocks, in a stable order."""
    return sorted(bytes(key) for key in client.scan_iter(match=b"vllm:kv:*:0:*", count=1000))


def same(expected: Sequence[Answer], answers: Sequence[Answer], what: str, loaded: int) -> None:
    """Judges that what was generated is the same, token for token."""
    wrong = [
        n for n, pair in enumerate(zip(expected, answers, strict=True)) if pair[0].tokens != pair[1].tokens
    ]
    check(
        not wrong,
        expected=f"{what}: the tokens are those that are generated without the cache",
        observed=f"prompts {wrong} of {len(answers)} differ"
        + (f": {expected[wrong[0]].tokens} became {answers[wrong[0]].tokens}" if wrong else ""),
        evidence={"prompts_that_differ": len(wrong), "blocks_loaded": loaded},
    )


def loads_since(
    engine: VllmProcess, before: Mapping[tuple[str, str], int]
) -> tuple[dict[tuple[str, str], int], int, Counter[str]]:
    """The counters now, and how many blocks were loaded since ``before``, and were not, by reason."""
    now = engine.counters()
    gained = Counter({key[1]: count - before.get(key, 0) for key, count in now.items() if key[0] == "load"})
    hits = gained.pop("hit", 0)
    return now, hits, +gained


@pytest.mark.cost_s(60)
@clause("KV-02", needs={"vllm", "crash", "net"})
def test_what_is_generated_does_not_depend_on_the_cache(
    servers: ServerFactory,
    implementation: Implementation,
    rng: random.Random,
    evidence: Evidence,
    tmp_path: Path,
) -> None:
    """Greedy tokens are the same with nothing cached; in a fresh process with everything cached, bit for bit
    as after a hit in the engine's own cache; with every eighth block gone; with every eighth one damaged;
    with a connection cut in the middle of a block; and with the server killed while blocks are loaded.
    """
    server = servers.scaled(maxmemory_bytes=SERVER_BYTES)
    prompts = some_prompts(rng, 300, 517, 129, 700)
    full_blocks = sum(len(prompt) // BLOCK_TOKENS for prompt in prompts)
    arrangement: dict[str, Any] = {"model": tmp_path / "model", "core": core_of(implementation)}
    with (
        server.connect() as client,
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
    ):
        with VllmProcess(
            **arrangement,
            make={"name": "llama", "seed": rng.randrange(1000)},
            kv_transfer_config=cpu_config(server.login_url()),
            hash_seed="1",
        ) as engine:
            cold = engine.generate(prompts)
            own = engine.generate(prompts)
            stored = engine.counters().get(("store", "stored"), 0)
        keys = block_keys(client)
        check(
            stored == full_blocks == len(keys),
            expected=f"all {full_blocks} full blocks of the prompts are stored",
            observed=f"{stored} are acknowledged, {len(keys)} are there",
            evidence={"full_blocks": full_blocks, "stored": stored, "there": len(keys)},
        )
        kept = {key: bytes(client.get(key) or b"") for key in keys}
        with VllmProcess(
            **arrangement,
            kv_transfer_config=cpu_config(server.login_url(proxy.port), after_reset="same_keys", **PATIENT),
            hash_seed="2",
        ) as engine:
            warm = engine.generate(prompts)
            counters, warm_hits, _ = loads_since(engine, {})
            same(cold, warm, "warm, in a fresh process", warm_hits)
            ensure(
                warm_hits == full_blocks, f"{warm_hits} of {full_blocks} blocks were loaded, others computed"
            )
            bits = sum(one.logprobs == other.logprobs for one, other in zip(own, warm, strict=True))
            check(
                bits == len(prompts),
                expected="log-probabilities are those after a hit in the engine's own cache, bit for bit",
                observed=f"those of {len(prompts) - bits} of {len(prompts)} prompts differ",
                evidence={"prompts_bit_equal": bits},
            )

            client.unlink(*keys[::8])
            engine.reset()
            lossy = engine.generate(prompts)
            counters, lossy_hits, _ = loads_since(engine, counters)
            same(cold, lossy, "every eighth block gone", lossy_hits)
            ensure(0 < lossy_hits < full_blocks, f"{lossy_hits} blocks were loaded in spite of the holes")

            for number, key in enumerate(keys):
                value = bytearray(kept[key])
                if number % 8 == 0:
                    value[len(value) // 2] ^= 1
                client.set(key, bytes(value), px=600_000)
            engine.reset()
            damaged = engine.generate(prompts)
            counters, damaged_hits, damaged_misses = loads_since(engine, counters)
            same(cold, damaged, "every eighth block damaged", damaged_hits)
            ensure(bool(damaged_misses), "no damaged block was tried")

            for key, content in kept.items():
                client.set(key, content, px=600_000)
            engine.reset()
            cut = ResetMidReply(after_bytes=20_000, commands="all")
            with proxy.fault(cut):
                severed = engine.generate(prompts[:2])
            counters, _, cut_misses = loads_since(engine, counters)
            same(cold[:2], severed, "cut in the middle of a block", 0)
            ensure(cut.acted > 0 and bool(cut_misses), "no load was cut off")

            engine.reset()
            with proxy.fault(Latency(seconds=0.05)):
                killer = threading.Timer(0.2, server.crash)
                killer.start()
                killed = engine.generate(prompts)
                killer.join()
            counters, killed_hits, _ = loads_since(engine, counters)
            same(cold, killed, "the server killed meanwhile", killed_hits)
    evidence.record(
        prompts=len(prompts),
        blocks=full_blocks,
        loaded_warm=warm_hits,
        loaded_with_holes=lossy_hits,
        loaded_with_damage=damaged_hits,
        damaged_or_gone=damaged_misses.total(),
        cut_off=cut_misses.total(),
        loaded_before_the_kill=killed_hits,
    )


@pytest.mark.cost_s(35)
@clause("KV-02", needs={"vllm", "config"})
def test_models_with_several_kinds_of_attention_are_the_same_too(
    servers: ServerFactory,
    implementation: Implementation,
    rng: random.Random,
    evidence: Evidence,
    tmp_path: Path,
) -> None:
    """With layers of full attention and of a sliding window, in bfloat16, split over two workers, what is
    loaded gives the same tokens and log-probabilities.
    """
    hits = loaded_is_as_computed(
        servers,
        implementation,
        rng,
        tmp_path,
        make={"name": "sliding-window", "seed": rng.randrange(1000), "dtype": "bfloat16"},
        arguments={"dtype": "bfloat16", "tensor_parallel_size": 2},
    )
    evidence.record(blocks_loaded_by_two_workers=hits)


@pytest.mark.cost_s(25)
@clause("KV-02", needs={"vllm", "config"})
def test_latent_attention_is_the_same_too(
    servers: ServerFactory,
    implementation: Implementation,
    rng: random.Random,
    evidence: Evidence,
    tmp_path: Path,
) -> None:
    """With multi-head latent attention (DeepSeek's), in bfloat16, what is loaded gives the same tokens and
    log-probabilities.
    """
    hits = loaded_is_as_computed(
        servers,
        implementation,
        rng,
        tmp_path,
        make={"name": "latent", "seed": rng.randrange(1000), "dtype": "bfloat16"},
        arguments={"dtype": "bfloat16"},
    )
    evidence.record(latent_blocks_loaded=hits)


def loaded_is_as_computed(
    servers: ServerFactory,
    implementation: Implementation,
    rng: random.Random,
    tmp_path: Path,
    *,
    make: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> int:
    """Judges what one engine makes of loaded blocks by what it makes of those in its own cache; returns how
    many were loaded. The engine's own cache is the measure, since computing a prompt anew in other pieces
    changes the last bits, which a short dtype lets come through to the tokens.
    """
    server = servers.scaled(maxmemory_bytes=SERVER_BYTES)
    prompts = some_prompts(rng, 300, 517, 129)
    with VllmProcess(
        model=tmp_path / "model",
        make=make,
        arguments=arguments,
        core=core_of(implementation),
        kv_transfer_config=cpu_config(server.login_url(), after_reset="same_keys", **PATIENT),
    ) as engine:
        engine.generate(prompts)
        own = engine.generate(prompts)
        before = engine.counters()
        engine.reset()
        warm = engine.generate(prompts)
        _, hits, misses = loads_since(engine, before)
    ensure(hits > 0 and not misses, f"{hits} blocks were loaded, others could not be: {dict(misses)}")
    same(own, warm, "warm, against a hit in the engine's own cache", hits)
    bits = sum(one.logprobs == other.logprobs for one, other in zip(own, warm, strict=True))
    check(
        bits == len(prompts),
        expected="log-probabilities are those after a hit in the engine's own cache, bit for bit",
        observed=f"those of {len(prompts) - bits} of {len(prompts)} prompts differ",
        evidence={"prompts_bit_equal": bits},
    )
    return hits


@pytest.mark.cost_s(35)
@clause("KV-03", needs={"vllm", "config"})
def test_other_weights_and_other_tenants_find_nothing(
    servers: ServerFactory,
    implementation: Implementation,
    rng: random.Random,
    evidence: Evidence,
    tmp_path: Path,
) -> None:
    """An engine with other weights under the same name loads no block of the first; nor does a request with
    another cache salt; the same request does.
    """
    server = servers.scaled(maxmemory_bytes=SERVER_BYTES)
    prompts = some_prompts(rng, 200, 133)
    found: dict[str, int] = {}
    for seed in (1, 2):
        with VllmProcess(
            model=tmp_path / "model",
            make={"name": "llama", "seed": seed},
            core=core_of(implementation),
            kv_transfer_config=cpu_config(server.login_url(), after_reset="same_keys", **PATIENT),
        ) as engine:
            answers = engine.generate(prompts, salt="tenant-1")
            counters, hits, _ = loads_since(engine, {})
            if seed == 2:
                found["other weights"] = hits
                break
            for name, salt in {"the same": "tenant-1", "another salt": "tenant-2", "no salt": ""}.items():
                engine.reset()
                again = engine.generate(prompts, salt=salt)
                counters, found[name], _ = loads_since(engine, counters)
                same(answers, again, name, found[name])
    ensure(found["the same"] > 0, "the same request found nothing, so that others do not proves nothing")
    for name, hits in found.items():
        check(
            hits == 0 or name == "the same",
            expected=f"{name}: no block is shared",
            observed=f"{hits} blocks were loaded",
            evidence={"blocks_loaded": hits},
        )
    evidence.record(**{f"loaded_with_{name.replace(' ', '_')}": hits for name, hits in found.items()})


@pytest.mark.cost_s(20)
@clause("KV-04", needs={"vllm"})
def test_vllm_derives_the_same_keys_in_every_process(
    implementation: Implementation, evidence: Evidence
) -> None:
    """Processes with PYTHONHASHSEED 1, 2 and none derive the same keys for the same prompt through vLLM's own
    hashing, and other keys for another adapter or cache salt.
    """
    seen: dict[str, dict[str, list[str]]] = {}
    processes = {
        seed: subprocess.Popen(
            [sys.executable, "-m", "fixtures.engines.vllm_keys"],
            cwd=Path(__file__).parents[1],
            env=_environment(seed, core_of(implementation)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for seed in ("1", "2", "")
    }
    for seed, process in processes.items():
        output, _ = process.communicate(timeout=300)
        ensure(process.returncode == 0, f"the process with PYTHONHASHSEED={seed!r} failed")
        seen[seed] = json.loads(output.splitlines()[-1])
    check(
        seen["1"] == seen["2"] == seen[""],
        expected="the same keys, whatever PYTHONHASHSEED is",
        observed="; ".join(f"{seed or 'unset'}: {keys['plain'][0][-16:]}" for seed, keys in seen.items()),
        evidence={"processes": len(seen)},
    )
    kinds = seen["1"]
    every = [key for keys in kinds.values() for key in keys]
    check(
        len(set(every)) == len(every),
        expected="requests that differ in adapter or salt share no key",
        observed=f"{len(every) - len(set(every))} of {len(every)} keys are shared",
        evidence={"keys": len(every), "distinct": len(set(every))},
    )
    evidence.record(processes_compared=len(seen), kinds_of_request=len(kinds))


def _environment(seed: str, core: str) -> dict[str, str]:
    environment = {**os.environ, "INFERENCE_CACHE_TIER": core, "VLLM_LOGGING_LEVEL": "ERROR"}
    environment.pop("PYTHONHASHSEED", None)
    return environment | ({"PYTHONHASHSEED": seed} if seed else {})


@pytest.mark.cost_s(45)
@clause("KV-10", needs={"vllm", "net", "crash"})
def test_the_engine_goes_on_through_every_fault(
    servers: ServerFactory,
    contract: Contract,
    implementation: Implementation,
    rng: random.Random,
    evidence: Evidence,
    tmp_path: Path,
) -> None:
    """Under each fault a request is answered with the same tokens, by computing; after it the same engine
    loads blocks again, within the contract's time.
    """
    server = servers.scaled(maxmemory_bytes=SERVER_BYTES)
    prompts = some_prompts(rng, 300)
    slowest_s = 0.0
    with (
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
        VllmProcess(
            model=tmp_path / "model",
            make={"name": "llama", "seed": rng.randrange(1000)},
            core=core_of(implementation),
            kv_transfer_config=cpu_config(server.login_url(proxy.port), after_reset="same_keys"),
        ) as engine,
    ):
        expected = engine.generate(prompts)
        counters = engine.counters()
        for name, make_fault in FAULTS.items():
            engine.reset()
            fault = make_fault()
            asked = [*prompts, *some_prompts(rng, 100)]
            with proxy.fault(fault):
                try:
                    answers = engine.generate(asked, within_s=120.0)
                    engine.counters()
                except (RuntimeError, TimeoutError) as error:
                    check(
                        False,
                        expected=f"{name}: requests go on",
                        observed=f"{error}"[:300],
                        evidence={"fault": name},
                    )
            ensure(fault.acted > 0, f"{name!r} did not act")
            same(expected, answers[:1], name, 0)
            slowest_s = max(slowest_s, *(answer.took_s for answer in answers))
            counters, _, _ = loads_since(engine, counters)
            for _ in range(round(contract.deadlines.recovery_s / 0.25)):
                engine.reset()
                again = engine.generate(asked)
                counters, hits, _ = loads_since(engine, counters)
                if hits:
                    break
                threading.Event().wait(0.25)
            same(answers, again, f"after {name}", hits)
            check(
                hits > 0,
                expected=f"{name}: afterwards blocks are loaded again, by the same engine",
                observed=f"none was, within {contract.deadlines.recovery_s:g} s",
                evidence={"fault": name},
            )
    evidence.record(engine_faults=len(FAULTS), slowest_request_under_a_fault_s=round(slowest_s, 3))


@pytest.mark.cost_s(40)
@clause("KV-11", needs={"vllm", "config"})
def test_a_stored_prefix_is_faster_than_computing_it(
    servers: ServerFactory,
    implementation: Implementation,
    rng: random.Random,
    evidence: Evidence,
    tmp_path: Path,
) -> None:
    """On a model of some width, the first token of a prompt of 1900 tokens comes sooner from stored blocks
    than by computing them; medians of three each.
    """
    server = servers.scaled(maxmemory_bytes=SERVER_BYTES)
    prompts = some_prompts(rng, 1900, 1900, 1900)
    with VllmProcess(
        model=tmp_path / "model",
        make={"name": "wide-llama", "seed": 1},
        core=core_of(implementation),
        kv_transfer_config=cpu_config(
            server.login_url(), host_memory="192mb", after_reset="same_keys", **PATIENT
        ),
    ) as engine:
        engine.generate(some_prompts(rng, 1900), max_tokens=1)  # what is slow once only
        computed = engine.generate(prompts, max_tokens=1)
        before = engine.counters()
        engine.reset()
        loaded = engine.generate(prompts, max_tokens=1)
        _, hits, _ = loads_since(engine, before)
    ensure(hits >= 3 * (1900 // BLOCK_TOKENS), f"only {hits} blocks were loaded")
    middle = [sorted(answer.took_s for answer in answers)[1] for answers in (computed, loaded)]
    same(computed, loaded, "the first token", hits)
    evidence.record(
        first_token_computed_s=round(middle[0], 3),
        first_token_loaded_s=round(middle[1], 3),
        loaded_blocks=hits,
    )
    check(
        middle[1] < middle[0],
        expected="the first token comes sooner from stored blocks",
        observed=f"{middle[1]:.3f} s against {middle[0]:.3f} s by computing",
        evidence={"loaded_s": round(middle[1], 3), "computed_s": round(middle[0], 3)},
    )


@pytest.mark.cost_s(20)
@clause("KV-01", needs={"gpu", "config"})
def test_device_blocks_come_back_bit_by_bit(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """Blocks of bf16, fp16 and fp8 on a GPU, in both layouts that vLLM uses, come back to the device with
    their bits, copied on a stream of their own while another one computes.
    """
    import torch

    server = servers.scaled(maxmemory_bytes=SERVER_BYTES)
    heads, tokens, width, slots = 8, 16, 128, 8
    compared = 0
    for name in ("bfloat16", "float16", "float8_e4m3fn"):
        for shape in ((slots, 2, tokens, heads, width), (slots, 2, heads, tokens, width)):
            bits = torch.randint(-128, 127, (*shape[:-1], 2 * width), dtype=torch.int8, device="cuda")
            blocks = bits.view(getattr(torch, name))[..., :width].contiguous()
            row_bytes = blocks[0].numel() * blocks.element_size()
            host = torch.empty((2 * slots, row_bytes), dtype=torch.int8).pin_memory()
            rows = blocks.view(torch.int8).reshape(slots, row_bytes)
            back = torch.zeros_like(rows)
            identity = an_identity(kv_dtype=name, layout=f"cuda:{shape}", value_bytes=row_bytes)
            copying, computing = torch.cuda.Stream(), torch.cuda.Stream()
            with torch.cuda.stream(computing):
                busy = torch.rand((2048, 2048), device="cuda")
                for _ in range(50):
                    busy = (busy @ busy).clamp(-1, 1)
            with torch.cuda.stream(copying):
                host[:slots].copy_(rows, non_blocking=True)
            copying.synchronize()
            items = [(block(number), number) for number in range(slots)]
            there = [(which, slots + number) for number, (which, _) in enumerate(items)]
            with implementation("kv_offload")(
                server.login_url(), memory=memoryview(host.numpy()), identity=identity
            ) as tier:
                tier.submit_store(1, items)
                stored = only_result(tier)
                tier.submit_load(2, there)
                loaded = only_result(tier)
            ensure(stored.ok and loaded.ok, f"{name}: blocks were not moved: {stored}, {loaded}")
            with torch.cuda.stream(copying):
                back.copy_(host[slots:], non_blocking=True)
            copying.synchronize()
            wrong = int((back != rows).any(dim=1).sum())
            compared += slots
            check(
                wrong == 0,
                expected=f"{name} blocks come back to the device with their bits",
                observed=f"{wrong} of {slots} have others",
                evidence={"dtype": name, "wrong": wrong},
            )
    evidence.record(device_blocks_compared=compared, device=str(torch.cuda.get_device_name()))


def only_result(tier: Any) -> JobResult:
    """The result of the one job that is under way."""
    results: list[JobResult] = []

    def there() -> bool:
        results.extend(tier.results())
        return bool(results)

    wait_for(there, what="the job", deadline_s=30.0)
    return results[0]
