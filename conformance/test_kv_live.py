"""KV: what an offloader left on the server, whoever wrote it: ours, vLLM's, LMCache, or anything else.

Nothing is asked of the offloader itself, so it need not be known, nor be in this process. What lies outside
of every declared prefix is ISO-06's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from fixtures.spec import Evidence, Numbers, check, clause
from fixtures.targets import Target
from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.keyspace import Keyspace

MOST_KEYS = 200_000
AT_ONCE = 500
PREFIX = "vllm:kv:"
RECORD = b":config"
"""How the name of a run's record ends; it outlives the run's blocks, by as long again."""


@clause("KV-09", needs={"read"}, only=("live",))
def test_whatever_lies_under_the_prefix_expires(
    target: Target, contract: Contract, evidence: Evidence
) -> None:
    """On the server as it is, each key under the blocks' prefix expires within the contract's time to live,
    whichever offloader wrote it: a bounded walk that reads no value and counts as no use of a key.
    """
    workload = next(each for each in contract.workloads.values() if each.prefix == PREFIX)
    limit_ms = None if workload.ttl_s is None else 1000 * workload.ttl_s
    own = target.namespace.prefix(workload).encode()
    wrong: Counter[str] = Counter()
    examples: dict[str, str] = {}
    walked = 0
    with target.connect(deadline_s=30) as client:
        names = client.scan_iter(match=Keyspace(workload.prefix).pattern(), count=1000)
        for name, left_ms in islice(left_to_live(client, names, own), MOST_KEYS):
            walked += 1
            what = fault_of(left_ms, limit_ms, record=name.endswith(RECORD))
            if what:
                wrong[what] += 1
                examples.setdefault(what, name.decode("utf-8", "backslashreplace")[:80])
    numbers: Numbers = {
        "keys_under_the_prefix": walked,
        "keys_that_break_the_contract": wrong.total(),
        "ttl_s": workload.ttl_s,
    }
    evidence.record(**numbers)
    wanted = "never expires" if limit_ms is None else f"expires within {workload.ttl_s} s"
    check(
        not wrong,
        expected=f"each key under {PREFIX} {wanted}",
        observed="; ".join(
            f"{count} of {walked} {what}, such as {examples[what]!r}" for what, count in wrong.most_common(3)
        ),
        evidence=numbers,
        remedy="Find which offloader writes these keys (CLIENT LIST names clients) and set its time to live, "
        "or keep it from this server; UNLINK what is there, which nobody would miss for long.",
    )


def left_to_live(client: Client, names: Iterator[Any], own: bytes) -> Iterator[tuple[bytes, int]]:
    """Each key that is still there and not the suite's, with its PTTL: milliseconds, or -1 for ever."""
    while batch := list(islice(names, AT_ONCE)):
        theirs = [bytes(name) for name in batch if not bytes(name).startswith(own)]
        with client.pipeline(transaction=False) as pipeline:
            for name in theirs:
                pipeline.pttl(name)
            replies: list[Any] = pipeline.execute()
        for name, left_ms in zip(theirs, replies, strict=True):
            if left_ms != -2:
                yield name, int(left_ms)


def fault_of(left_ms: int, limit_ms: int | None, *, record: bool) -> str:
    """What is wrong with a key, empty for nothing."""
    if limit_ms is None:
        return "" if left_ms == -1 else "expire"
    if left_ms == -1:
        return "never expire"
    return "live longer" if left_ms > limit_ms * (2 if record else 1) else ""
