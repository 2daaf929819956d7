"""DUR: data survives restarts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import pytest

from fixtures.aof import base_file, command_offsets, log_file
from fixtures.crashes import crash_under_load, judge_crash, save
from fixtures.dataset import describe_keys, write_random_dataset
from fixtures.disk import SmallDisk, small_disk
from fixtures.ledger import Audit, Ledger
from fixtures.load import Item, Payloads, evictable_workloads, present, read_back, store, workload_items
from fixtures.observe import require_config, require_info, server_time_ms, wait_for
from fixtures.restart import LiveRestart
from fixtures.servers import ServerFactory, effective_maxmemory
from fixtures.spec import Evidence, Numbers, check, clause, not_proven
from fixtures.targets import EmbeddedServer, StartupError
from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.errors import CacheUnavailable, PersistenceFailed, ServerLoading, WriteRefused

MIB = 1024 * 1024
LONGEST_WAIT_S = 10.0
"""Loss windows up to this are waited for."""


@clause("DUR-01", needs={"restart"})
def test_everything_is_back_after_a_graceful_restart(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """Keys of all workloads and types come back with the same value and the same absolute deadline, twice."""
    server = servers.scaled()
    with server.connect(deadline_s=30) as client:
        names = write_random_dataset(client, contract, rng, keys=600, now_ms=server_time_ms(client))
        before = describe_keys(client, names)
    for restart in (1, 2):
        server.restart()
        with server.connect(deadline_s=30) as client:
            after = describe_keys(client, names)
        lost = [name for name in before if name not in after]
        changed = [name for name in before if name in after and before[name][:2] != after[name][:2]]
        moved = [name for name in before if name in after and before[name][2] != after[name][2]]
        numbers: Numbers = {
            "restart": restart,
            "keys_written": len(before),
            "lost": len(lost),
            "changed": len(changed),
            "deadline_moved": len(moved),
        }
        evidence.record(**numbers)
        first = next(iter(lost + changed + moved), b"")
        check(
            bool(before) and not (lost or changed or moved),
            expected="every key, value and absolute deadline as before the restart",
            observed=f"of {len(before)} keys {len(lost)} lost, {len(changed)} changed, "
            f"{len(moved)} with another deadline; first: {first!r}",
            evidence=numbers,
        )


@clause("DUR-01", needs={"write"}, only=("live",))
def test_the_live_server_comes_back_with_everything(
    live_restart: Callable[[], LiveRestart], evidence: Evidence
) -> None:
    """With its operator's consent the live server is shut down; whoever runs it starts it again, on the same
    volume: every key of this run is back with its value and its absolute deadline.
    """
    seen = live_restart()
    lost = [name for name in seen.keys_before if name not in seen.keys_after]
    changed = [name for name, was in seen.keys_before.items() if seen.keys_after.get(name, was) != was]
    numbers: Numbers = {
        "keys_written": len(seen.keys_before),
        "lost": len(lost),
        "changed": len(changed),
        "away_s": round(seen.away_s, 2),
    }
    evidence.record(**numbers)
    check(
        bool(seen.keys_before) and not lost and not changed,
        expected="every key, value and absolute deadline as before the restart",
        observed=f"of {len(seen.keys_before)} keys {len(lost)} are lost and {len(changed)} changed",
        evidence=numbers,
        remedy="Check that the volume outlives the process: `dir` on the PersistentVolumeClaim, and "
        "`appendonly yes` in the configuration that is loaded at the start.",
    )


@pytest.mark.cost_s(9)
@clause("DUR-02", needs={"crash"})
def test_acknowledged_writes_survive_a_crash(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """SIGKILL at random moments under load: only writes of the declared window may be missing, and only the
    newest.

    The ledger of acknowledgements is kept here, outside the server, and goes on over all crashes. What is
    missing must be the end of what its connection wrote, and what is there must be whole. A declared window
    that is too long to wait for (snapshots only) is made to begin with a snapshot, which is what it promises
    to keep.
    """
    server = servers.scaled(maxmemory_bytes=96 * MIB)
    window = contract.instance.loss_window_s
    waits = window <= LONGEST_WAIT_S
    ledger = Ledger(
        lambda: server.connect(deadline_s=30), next(iter(contract.workloads.values())).prefix, rng
    )
    audits: list[Audit] = []
    # Before the first crash the load is older than the window, so that a server that keeps nothing is seen at
    # once.
    pauses = [window + 0.6 if waits else 0.6] + [rng.uniform(0.05, 0.5) for _ in range(7)]
    for pause in pauses:

        def load(pause: float = pause) -> float:
            time.sleep(pause)
            if waits:
                return window
            with server.connect(deadline_s=30) as client:
                began = time.monotonic()
                save(client)
            time.sleep(rng.uniform(0.05, 0.3))
            return time.monotonic() - began

        audits.append(crash_under_load(server, ledger, load))
        judge_crash(audits, evidence, window)


@pytest.mark.cost_s(9)
@clause("DUR-03", needs={"crash"})
def test_a_crash_while_saving_loses_nothing_more(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """SIGKILL in the middle of BGSAVE and of an AOF rewrite: as for any other moment."""
    # Microseconds for each key: stretches saving enough to be hit in the middle.
    server = servers.scaled(maxmemory_bytes=96 * MIB, settings={"rdb-key-save-delay": "100"})
    window = contract.instance.loss_window_s
    waits = window <= LONGEST_WAIT_S
    prefix = next(iter(contract.workloads.values())).prefix
    ledger = Ledger(lambda: server.connect(deadline_s=30), prefix, rng)
    payloads = Payloads(rng)
    with server.connect(deadline_s=30) as client:
        keys = [f"{prefix}bulk:{n}".encode() for n in range(6000)]
        store(client, (Item(key=key, value=payloads.make(key, 400)) for key in keys))
        rewrites = require_config(client, "appendonly") == "yes"
    kinds = [("BGSAVE", "rdb_bgsave_in_progress")]
    if rewrites:
        kinds.append(("BGREWRITEAOF", "aof_rewrite_in_progress"))
    audits: list[Audit] = []
    caught = dict.fromkeys((command for command, _ in kinds), 0)
    for number, (command, field) in enumerate(kinds * 2):

        def in_the_middle(command: str = command, field: str = field, first: bool = number == 0) -> float:
            # As in DUR-02: by the first crash, some of the load is older than the window.
            time.sleep(window + 0.6 if first and waits else 0.1)
            with server.connect(deadline_s=30) as client:
                saved = time.monotonic()
                if not waits:
                    save(client)
                client.execute_command(command)
                wait_for(
                    lambda: require_info(client, "persistence")[field] == "1",
                    what=f"{command} to begin",
                    deadline_s=20,
                )
                time.sleep(rng.uniform(0.0, 0.3))
                caught[command] += require_info(client, "persistence")[field] == "1"
            return window if waits else time.monotonic() - saved

        audits.append(crash_under_load(server, ledger, in_the_middle))
        with server.connect(deadline_s=30) as client:
            bulk_missing = len(keys) - sum(present(client, keys))
        evidence.record(**{f"crashes_during_{name}": count for name, count in caught.items()})
        judge_crash(audits, evidence, window)
        check(
            bulk_missing == 0,
            expected=f"all {len(keys)} keys written long before the crash are there",
            observed=f"{bulk_missing} are missing after a crash during {command}",
            evidence={"missing": bulk_missing, "command": command},
        )
    if not all(caught.values()):
        not_proven(f"saving ended before the crash could hit it: {caught}")


@clause("DUR-04", needs={"host", "restart"})
def test_a_cut_tail_is_recovered(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """An append-only file that ends in the middle of a command loses that command and nothing else."""
    server, keys, payloads = stopped_server_with_log(servers, contract, rng)
    log = log_file(server.data_dir)
    raw = log.read_bytes()
    offsets = command_offsets(raw)
    # Within the last command: at least its first byte stays, at least its last byte goes.
    cut_at = rng.randrange(offsets[-2] + 1, offsets[-1])
    log.write_bytes(raw[:cut_at])
    numbers: Numbers = {"log_bytes": len(raw), "bytes_cut": len(raw) - cut_at, "keys_written": len(keys)}
    try:
        server.start()
    except StartupError as error:
        check(
            False,
            expected="the server recovers from a cut tail (aof-load-truncated yes)",
            observed=f"it refused to start: {str(error).splitlines()[0]}",
            evidence=numbers,
            remedy="Set `aof-load-truncated yes`: a crash in mid-write must not need an operator.",
        )
    with server.connect(deadline_s=30) as client:
        missing, damaged = compare(client, keys, payloads)
    numbers |= {"keys_missing": len(missing), "values_damaged": len(damaged)}
    evidence.record(**numbers)
    check(
        not damaged and set(missing) <= {keys[-1]},
        expected="only the write whose bytes were cut is missing",
        observed=f"{len(missing)} keys are missing and {len(damaged)} damaged "
        f"after {len(raw) - cut_at} bytes were cut",
        evidence=numbers,
    )


@clause("DUR-04", needs={"host", "restart"})
def test_a_corrupt_middle_is_refused(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """An append-only file with garbage in its middle stops the start-up, with a reason in the log.

    The structure is damaged, not a value: the file's format has no checksum over values, and no server can
    see a changed letter in one.
    """
    server, keys, _ = stopped_server_with_log(servers, contract, rng)
    log = log_file(server.data_dir)
    raw = bytearray(log.read_bytes())
    offsets = command_offsets(bytes(raw))
    at = offsets[len(offsets) // 3 + rng.randrange(len(offsets) // 3)]
    raw[at : at + 2] = b"\xff\x00"
    log.write_bytes(raw)
    refuses(server, evidence, what=f"an append-only file damaged at byte {at} of {len(raw)}", keys=len(keys))


@clause("DUR-04", needs={"host", "restart"})
def test_a_corrupt_snapshot_is_refused(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """A snapshot with one flipped bit is refused: its checksum does not match."""
    server = servers.scaled()
    payloads = Payloads(rng)
    prefix = next(iter(contract.workloads.values())).prefix
    keys = [f"{prefix}snapshot:{n}".encode() for n in range(300)]
    with server.connect(deadline_s=30) as client:
        store(client, (Item(key=key, value=payloads.make(key, 2000)) for key in keys))
        rewrite = require_config(client, "appendonly") == "yes"
        client.execute_command("BGREWRITEAOF" if rewrite else "BGSAVE")
        wait_for(
            lambda: all(
                require_info(client, "persistence")[field] == "0"
                for field in ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
            ),
            what="the snapshot to be written",
            deadline_s=20,
        )
    server.stop()
    try:
        snapshot = base_file(server.data_dir, append_only=rewrite)
    except FileNotFoundError as error:
        not_proven(f"the server writes no snapshot with a checksum: {error}")
    raw = bytearray(snapshot.read_bytes())
    # Inside a value: behind the first key, before the last one.
    at = rng.randrange(len(raw) // 4, 3 * len(raw) // 4)
    raw[at] ^= 1 << rng.randrange(8)
    snapshot.write_bytes(raw)
    refuses(server, evidence, what=f"a snapshot with byte {at} of {len(raw)} changed", keys=len(keys))


def stopped_server_with_log(
    servers: ServerFactory, contract: Contract, rng: random.Random
) -> tuple[EmbeddedServer, list[bytes], Payloads]:
    """A stopped server whose append-only file holds one SET for each key, in order."""
    server = servers.scaled()
    payloads = Payloads(rng)
    prefix = next(iter(contract.workloads.values())).prefix
    keys = [f"{prefix}log:{n}".encode() for n in range(300)]
    with server.connect(deadline_s=30) as client:
        if require_config(client, "appendonly") != "yes":
            not_proven("the server has no append-only file to damage")
        store(client, (Item(key=key, value=payloads.make(key, 500)) for key in keys))
    server.stop()
    return server, keys, payloads


def refuses(server: EmbeddedServer, evidence: Evidence, *, what: str, keys: int) -> None:
    try:
        server.start()
    except StartupError:
        exit_code, log = server.exit_code, server.log_tail(30)
        numbers: Numbers = {"exit_code": exit_code, "keys_written": keys}
        evidence.record(**numbers)
        check(
            exit_code not in (None, 0) and bool(log.strip()),
            expected=f"{what} ends the start-up with an error and a reason in the log",
            observed=f"it ended with exit code {exit_code} and said {log.strip()[-200:]!r}",
            evidence=numbers,
        )
        return
    with server.connect() as client:
        served = client.dbsize()
    check(
        False,
        expected=f"{what} ends the start-up with an error",
        observed=f"the server started and serves {served} of {keys} keys",
        evidence={"keys_written": keys, "keys_served": served},
    )


def compare(client: Client, keys: list[bytes], payloads: Payloads) -> tuple[list[bytes], list[bytes]]:
    """Missing keys and keys with a wrong value."""
    missing, damaged = [], []
    for key, value in read_back(client, keys):
        if value is None:
            missing.append(key)
        elif payloads.version_of(key, value) != 0:
            damaged.append(key)
    return missing, damaged


@pytest.mark.cost_s(4)
@clause("DUR-05", needs={"restart"})
def test_loading_is_told_from_a_miss(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """From the first answer after a restart on, a known key is LOADING or its value, never absent."""
    # Microseconds for each key: loading takes long enough to be watched. While it loads a snapshot, the
    # server looks after its clients once in so many bytes.
    server = servers.scaled(
        settings={"key-load-delay": "120", "loading-process-events-interval-bytes": "65536"}
    )
    payloads = Payloads(rng)
    prefix = next(iter(contract.workloads.values())).prefix
    keys = [f"{prefix}load:{n}".encode() for n in range(12_000)]
    with server.connect(deadline_s=30) as client:
        store(client, (Item(key=key, value=payloads.make(key, 300)) for key in keys))
    server.stop()
    server.start(wait_loaded=False)
    loading, values, wrong = 0, 0, 0
    first_wrong = ""
    questions: list[tuple[str, Callable[[Client, bytes], object]]] = [
        ("GET", lambda c, key: payloads.version_of(key, c.get(key) or b"") == 0),
        ("MGET", lambda c, key: payloads.version_of(key, c.mget([key])[0] or b"") == 0),
        ("EXISTS", lambda c, key: c.exists(key) == 1),
        ("STRLEN", lambda c, key: c.strlen(key) == 300),
    ]
    end = time.monotonic() + 60
    while values < 40 and time.monotonic() < end:
        name, ask = rng.choice(questions)
        try:
            with server.connect(deadline_s=10) as client:
                right = ask(client, rng.choice(keys))
        except ServerLoading:
            loading += 1
            continue
        except CacheUnavailable:
            continue
        if right:
            values += 1
        else:
            wrong += 1
            first_wrong = first_wrong or name
            if wrong > 20:
                break
    numbers: Numbers = {"loading_answers": loading, "right_answers": values, "wrong_answers": wrong}
    evidence.record(**numbers)
    check(
        wrong == 0,
        expected="LOADING, or the right value, for keys that were stored before the restart",
        observed=f"{wrong} answers took a stored key for absent or different while loading; "
        f"first to {first_wrong}",
        evidence=numbers,
    )
    if not loading:
        not_proven("the data set was loaded before a client could see LOADING")
    check(values > 0, expected="loading ends", observed="it did not within 60 s", evidence=numbers)


@pytest.mark.cost_s(6)
@clause("DUR-06", needs={"host", "config"})
def test_a_full_disk_does_what_was_decided(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """A snapshot, then the append-only file, cannot be written: writes stop or go on as the contract chose,
    INFO says so, and once there is room again the server goes on without a restart.
    """
    server = servers.scaled(start=False)
    with small_disk(server.data_dir, 32 * MIB) as disk:
        server.start()
        try:
            with server.connect(deadline_s=30) as client:
                payloads = Payloads(rng)
                prefix = next(iter(contract.workloads.values())).prefix
                keys = [f"{prefix}disk:{n}".encode() for n in range(80)]
                store(client, (Item(key=key, value=payloads.make(key, 100_000)) for key in keys))
                snapshots = require_config(client, "save") != ""
                log = require_config(client, "appendonly") == "yes"
                if not (snapshots or log):
                    check(
                        False,
                        expected="a full disk is noticed",
                        observed="nothing is persisted: no disk is ever written to",
                    )
                if snapshots:
                    full_disk_for_snapshots(client, disk, contract, evidence)
                if log:
                    full_disk_for_the_log(server, disk, keys, payloads, evidence)
        finally:
            disk.free()
            server.crash()


def full_disk_for_snapshots(client: Client, disk: SmallDisk, contract: Contract, evidence: Evidence) -> None:
    stops = contract.instance.on_disk_full == "stop-writes"
    disk.leave_free(3 * MIB)
    save(client)
    status = require_info(client, "persistence")["rdb_last_bgsave_status"]
    refused = refusal(lambda: client.set("emb:disk-probe", b"x"))
    numbers: Numbers = {
        "rdb_last_bgsave_status": status,
        "write_after_failed_snapshot": refused or "accepted",
    }
    evidence.record(**numbers)
    check(
        status == "err",
        expected="INFO says rdb_last_bgsave_status err when the disk is full",
        observed=f"it says {status}",
        evidence=numbers,
    )
    check(
        bool(refused) == stops,
        expected="writes are refused after a failed snapshot"
        if stops
        else "writes go on after a failed snapshot",
        observed=f"a write was {refused or 'accepted'}",
        evidence=numbers,
        remedy=f"Set `stop-writes-on-bgsave-error {'yes' if stops else 'no'}`, or change `on_disk_full` in "
        "the contract and alert on rdb_last_bgsave_status.",
    )
    disk.free()
    save(client)
    refused = refusal(lambda: client.set("emb:disk-probe", b"y"))
    check(
        not refused,
        expected="writes are accepted again once a snapshot succeeded, without a restart",
        observed=f"a write was {refused}",
        evidence=numbers,
    )


def full_disk_for_the_log(
    server: EmbeddedServer, disk: SmallDisk, keys: list[bytes], payloads: Payloads, evidence: Evidence
) -> None:
    acknowledged = list(keys)
    prefix = keys[0].rpartition(b":")[0]
    with server.connect(deadline_s=30) as client:
        exits = require_config(client, "appendfsync") == "always"
        disk.leave_free(200_000)
        refused, began = "", time.monotonic()
        for number in range(1000, 4000):
            key = b"%s:%d" % (prefix, number)
            try:
                refused = refusal(partial(client.set, key, payloads.make(key, 4000)))
            except CacheUnavailable:
                refused = "cut off: the server ended"
            if refused:
                break
            acknowledged.append(key)
            time.sleep(0.001)
        took = time.monotonic() - began
    numbers: Numbers = {"write_on_full_disk": refused or "accepted", "until_refused_s": round(took, 2)}
    evidence.record(**numbers)
    check(
        bool(refused),
        expected="writes are refused once the append-only file cannot grow",
        observed=f"{len(acknowledged) - len(keys)} writes were acknowledged on a full disk",
        evidence=numbers,
    )
    if exits:
        # The server's documented way with appendfsync always: it ends rather than acknowledge what it cannot
        # keep.
        server.wait_exit(deadline_s=20)
        disk.free()
        server.start()
    else:
        with server.connect(deadline_s=30) as client:
            status = require_info(client, "persistence")["aof_last_write_status"]
            check(
                status == "err",
                expected="INFO says aof_last_write_status err when the disk is full",
                observed=f"it says {status}",
                evidence=numbers,
            )
            disk.free()
            wait_for_writes(client)
    server.restart()
    with server.connect(deadline_s=30) as client:
        missing, damaged = compare(client, acknowledged, payloads)
    check(
        not missing and not damaged,
        expected="every acknowledged write is there after the disk had room again and a restart",
        observed=f"{len(missing)} of {len(acknowledged)} are missing, {len(damaged)} damaged",
        evidence=numbers,
    )


def wait_for_writes(client: Client) -> None:
    try:
        wait_for(
            lambda: not refusal(lambda: client.set("emb:disk-probe", b"z")),
            what="writes to be accepted again",
            deadline_s=20,
            poll_s=0.1,
        )
    except TimeoutError:
        check(
            False,
            expected="writes are accepted again once the disk has room, without a restart",
            observed="they were still refused 20 s later",
        )


def refusal(write: Callable[[], object]) -> str:
    """How a write was refused, empty when it was accepted."""
    try:
        write()
    except WriteRefused as error:
        kind = "MISCONF" if isinstance(error, PersistenceFailed) else type(error).__name__
        return f"refused ({kind})"
    return ""


@clause("DUR-07", needs={"restart"})
def test_the_cache_is_warm_after_a_restart(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """The same requests hit as often after a restart as before it, within the declared time."""
    server = servers.scaled(maxmemory_bytes=96 * MIB)
    payloads = Payloads(rng)
    prefix = next(iter(contract.workloads.values())).prefix
    keys = [f"{prefix}warm:{n}".encode() for n in range(4000)]
    requests = rng.choices(keys, weights=[1 / (n + 1) for n in range(len(keys))], k=5000)
    with server.connect(deadline_s=30) as client:
        store(client, (Item(key=key, value=payloads.make(key, 8000)) for key in keys[::2]))
        before = hit_rate(client, requests)
        used = int(require_info(client, "memory")["used_memory"])
    server.stop()
    began = time.monotonic()
    server.start()
    loading_s = time.monotonic() - began
    after = 0.0
    with server.connect(deadline_s=30) as client:
        while time.monotonic() - began < contract.deadlines.warm_up_s:
            after = hit_rate(client, requests)
            if after >= before - 0.01:
                break
            time.sleep(0.2)
    warm_s = time.monotonic() - began
    numbers: Numbers = {
        "hit_rate_before": round(before, 4),
        "hit_rate_after": round(after, 4),
        "start_to_loaded_s": round(loading_s, 3),
        "loading_s_per_gib": round(loading_s / used * 1024**3, 2),
        "start_to_warm_s": round(warm_s, 3),
    }
    evidence.record(**numbers)
    check(
        after >= before - 0.01,
        expected=f"the hit rate of before ({before:.3f}) within {contract.deadlines.warm_up_s:g} s "
        "of the start",
        observed=f"{after:.3f} after {warm_s:.1f} s",
        evidence=numbers,
    )


def hit_rate(client: Client, requests: list[bytes]) -> float:
    return sum(value is not None for _, value in read_back(client, requests)) / len(requests)


@pytest.mark.cost_s(4)
@clause("DUR-08", needs={"restart", "fill"})
def test_what_was_gone_stays_gone(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """Keys that were deleted, expired or evicted before a restart do not come back with it."""
    server = servers.scaled(maxmemory_bytes=24 * MIB)
    maxmemory = effective_maxmemory(server)
    payloads = Payloads(rng)
    workloads = evictable_workloads(contract)
    prefix = workloads[0].prefix
    deleted = [f"{prefix}deleted:{n}".encode() for n in range(100)]
    expired = [f"{prefix}expired:{n}".encode() for n in range(100)]
    expires_while_down = [f"{prefix}late:{n}".encode() for n in range(100)]
    with server.connect(deadline_s=30) as client:
        first = list(workload_items(workloads, payloads, rng, total_bytes=maxmemory // 2, name="old"))
        store(client, first)
        store(client, (Item(key=key, value=payloads.make(key, 300)) for key in deleted))
        store(client, (Item(key=key, value=payloads.make(key, 300), ttl_ms=600_000) for key in expired))
        store(
            client,
            (Item(key=key, value=payloads.make(key, 300), ttl_ms=600_000) for key in expires_while_down),
        )
    # A restart while all of them live, so that files of that time exist.
    server.restart()
    with server.connect(deadline_s=30) as client:
        for key in deleted:
            client.unlink(key)
        for key in expired:
            client.pexpire(key, 1)
        second = list(workload_items(workloads, payloads, rng, total_bytes=maxmemory, name="new"))
        store(client, second)
        for key in expires_while_down:
            client.pexpire(key, 400)
        written = [item.key for item in (*first, *second)]
        wait_for(lambda: not any(present(client, expired)), what="short TTLs to pass", deadline_s=20)
        gone = [key for key, there in zip(written, present(client, written), strict=True) if not there]
    server.stop()
    time.sleep(0.5)
    server.start()
    with server.connect(deadline_s=30) as client:
        back = {
            "evicted": sum(present(client, gone)),
            "deleted": sum(present(client, deleted)),
            "expired": sum(present(client, expired)),
            "expired_while_down": sum(present(client, expires_while_down)),
        }
    numbers: Numbers = {
        "evicted_before": len(gone),
        **{f"{kind}_and_back": count for kind, count in back.items()},
    }
    evidence.record(**numbers)
    check(len(gone) > 0, expected="the flood evicts keys", observed="it evicted none", evidence=numbers)
    check(
        not any(back.values()),
        expected="nothing that was evicted, deleted or expired is back after the restart",
        observed="back: " + ", ".join(f"{count} {kind}" for kind, count in back.items() if count),
        evidence=numbers,
    )
