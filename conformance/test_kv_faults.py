"""KV: the tier while the server, the network or the writer fails; judged without an engine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from fixtures.availability import FAULTS
from fixtures.faults.catalog import CutAtCommand
from fixtures.faults.proxy import FaultProxy
from fixtures.kv_blocks import BlockRig, block, bytes_of
from fixtures.kv_machine import TierHistory, tier_machine
from fixtures.observe import wait_for
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, check, clause, ensure
from fixtures.strategies import run_machine
from inference_cache.contract import Contract
from inference_cache.kv_offload import BlockId, Found, JobResult

Implementation = Callable[[str], Any]


@pytest.mark.cost_s(12)
@clause("KV-06", needs={"fill", "net"})
def test_no_interleaving_makes_a_wrong_block(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """Whatever order stores, loads, lookups, evictions, damage, faults and drains come in, a block that is
    said to be loaded has the bytes of its key, and each job has exactly one result.
    """
    server = servers.scaled()
    history = TierHistory()
    with (
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
        server.connect() as direct,
    ):
        machine = tier_machine(
            implementation("kv_offload"), server.login_url(proxy.port), direct, proxy, history
        )
        run_machine(machine, max_examples=30, steps=50)
    evidence.record(
        operations=history.operations,
        blocks_loaded=history.loaded,
        blocks_missed=history.missed,
        faults_acted=history.acted,
        blocks_recovered=history.recovered,
    )
    ensure(history.loaded + history.recovered > 100, f"the machine hardly loaded: {vars(history)}")
    ensure(history.missed > 10, f"hardly a load was a miss: {vars(history)}")
    ensure(history.acted > 0, "no fault acted")


@pytest.mark.cost_s(4)
@clause("KV-08", needs={"crash", "net"})
def test_nothing_of_a_block_is_seen_without_the_rest(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """Wherever the writer is cut off, and whichever of the keys that a block is made of is evicted, a lookup
    that finds the block is followed by a load of all of it.
    """
    server = servers.scaled()
    make_tier = implementation("kv_offload")
    cuts = evicted = 0
    with (
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
        server.connect() as client,
        BlockRig(make_tier, server.login_url()) as reader,
    ):

        def judge(which: BlockId, what: str, number: int) -> None:
            request = f"{what} {number}"
            found = reader.look([which], request=request)[0]
            loaded = reader.load([(which, 0)])
            reader.tier.forget(request)
            check(
                (found is Found.HIT) == loaded.ok and not reader.wrong([(which, 0)], loaded),
                expected=f"{what}: a block is found and loads, or is neither",
                observed=f"it is {'found' if found is Found.HIT else 'not found'} and "
                f"{'loads' if loaded.ok else 'does not load'}",
                evidence={"number": number},
            )

        for number in range(8):
            which = block(100 + number)
            fault = CutAtCommand(number=number)
            with (
                proxy.fault(fault),
                BlockRig(make_tier, server.login_url(proxy.port), store_deadline_s=0.5) as writer,
            ):
                writer.store([(which, 0)])
            cuts += fault.acted > 0
            judge(which, "the writer was cut off at a command", number)
        which = block(200)
        ensure(reader.store([(which, 0)]).ok, "the block of the proof was not stored")
        # The prefix of a block's keys; whatever else stands under it belongs to the block.
        parts = [bytes(key) for key in client.scan_iter(match=reader.key(which) + b"*", count=1000)]
        check(
            len(parts) >= 1,
            expected="a stored block has its key",
            observed="it has none",
        )
        for number, part in enumerate(parts):
            kept: Any = client.dump(part)
            client.unlink(part)
            judge(which, "one key of a block was evicted", number)
            evicted += 1
            client.restore(part, 0, kept, replace=True)
    ensure(cuts > 1, f"writers were hardly ever cut off: {cuts} times")
    evidence.record(writers_cut_off=cuts, keys_of_a_block=len(parts), keys_evicted=evicted)


@pytest.mark.cost_s(15)
@clause("KV-10", needs={"net", "config"})
def test_no_fault_keeps_the_tier_from_answering(
    servers: ServerFactory, contract: Contract, implementation: Implementation, evidence: Evidence
) -> None:
    """Under each fault lookups become misses and jobs end, within the deadlines and without an exception; no
    call of the engine's thread waits for the server; and after the fault blocks are stored and loaded again,
    by the same tier, within the contract's time.
    """
    server = servers.scaled()
    slack_s = 2.0  # a busy machine may be late by that much
    worst_call_s = worst_recovery_s = 0.0
    for number, (name, make_fault) in enumerate(FAULTS.items()):
        with (
            FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
            BlockRig(
                implementation("kv_offload"),
                server.login_url(proxy.port),
                lookup_deadline_s=0.2,
                load_deadline_s=1.0,
                store_deadline_s=1.0,
            ) as rig,
        ):
            known, fresh = block(1000 + 2 * number), block(1001 + 2 * number)
            ensure(rig.store([(known, 0)]).ok, f"the server was not healthy before {name!r}")
            fault = make_fault()
            with proxy.fault(fault):
                began_s = time.monotonic()
                answer, load = ask_under_fault(rig, name, known, fresh)
                took_s = time.monotonic() - began_s
            ensure(fault.acted > 0, f"{name!r} did not act")
            check(
                answer is not Found.LATER and not rig.wrong([(known, 1)], load),
                expected=f"{name}: a lookup is answered, and nothing wrong is loaded",
                observed=f"{answer.value}, loaded: {load.ok}",
                evidence={"fault": name},
            )
            limit_s = 0.2 + 1.0 + 1.0 + slack_s
            check(
                took_s <= limit_s,
                expected=f"{name}: a lookup, a load and a store end within {limit_s:g} s",
                observed=f"they took {took_s:.2f} s",
                evidence={"fault": name, "took_s": round(took_s, 3)},
            )
            began_s = time.monotonic()
            works_again(rig, name, within_s=contract.deadlines.recovery_s)
            worst_recovery_s = max(worst_recovery_s, time.monotonic() - began_s)
            worst_call_s = max(worst_call_s, took_s)
    evidence.record(
        faults=len(FAULTS),
        longest_answer_s=round(worst_call_s, 3),
        longest_recovery_s=round(worst_recovery_s, 3),
    )


def ask_under_fault(rig: BlockRig, fault: str, known: BlockId, fresh: BlockId) -> tuple[Found, JobResult]:
    """A lookup, a load and a store: the answer and the result of the load."""
    try:
        answer = rig.look([known], request="r", within_s=10.0)[0]
        began_s = time.monotonic()
        jobs = [rig.submit_load([(known, 1)]), rig.submit_store([(fresh, 2)])]
        submitted_s = time.monotonic() - began_s
        load, _ = [rig.result(job, within_s=10.0) for job in jobs]
    except TimeoutError as error:
        check(
            False,
            expected=f"{fault}: lookups and jobs end within their deadlines",
            observed=str(error),
            evidence={"fault": fault},
        )
    except Exception as error:
        check(
            False,
            expected=f"{fault}: the engine sees misses, and no exception",
            observed=f"{type(error).__name__}: {error}",
            evidence={"fault": fault},
        )
    check(
        submitted_s <= 2.0,
        expected=f"{fault}: submitting jobs does not wait for the server",
        observed=f"it took {submitted_s:.2f} s",
        evidence={"fault": fault, "submitting_s": round(submitted_s, 3)},
    )
    return answer, load


def works_again(rig: BlockRig, fault: str, *, within_s: float) -> None:
    """Waits until a block is stored and loaded."""
    numbers = itertools.count(5000)
    try:
        wait_for(
            lambda: works(rig, block(next(numbers))),
            what="a block to be stored and loaded",
            deadline_s=within_s,
            poll_s=0.05,
        )
    except TimeoutError as error:
        check(
            False,
            expected=f"{fault}: the tier works again within {within_s:g} s",
            observed=str(error),
            evidence={"fault": fault},
        )


def works(rig: BlockRig, which: BlockId) -> bool:
    """Whether a new block can be stored and loaded."""
    if not rig.store([(which, 5)]).ok:
        return False
    loaded = rig.load([(which, 6)])
    return loaded.ok and rig.row(6) == bytes_of(rig.identity, which)
