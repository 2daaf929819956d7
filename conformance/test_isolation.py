"""ISO: prefixes keep the workloads apart."""

from __future__ import annotations

import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.interference import interference_machine
from fixtures.load import present
from fixtures.observe import require_info
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, ensure
from fixtures.strategies import adversarial_parts, against_a_server, key_parts, run_machine
from fixtures.targets import StartupError, Target
from inference_cache.acl import render_acl
from inference_cache.connection import Client, connect
from inference_cache.contract import Contract
from inference_cache.errors import AccessDenied, CommandRejected, KeyFormatError
from inference_cache.keyspace import check_disjoint

MakeKeyspace = Callable[[str], Any]


@clause("ISO-01", needs={"read"})
def test_every_key_starts_with_its_own_prefix_only(
    target: Target, contract: Contract, make_keyspace: MakeKeyspace, evidence: Evidence
) -> None:
    """Whatever a workload's key is built from, it lies under that workload's prefix and under no other's."""
    prefixes = {w.name: w.prefix for w in contract.workloads.values()}
    problems = check_disjoint(prefixes.values())
    evidence.record(workloads=len(prefixes), prefix_problems=len(problems))
    check(
        not problems,
        expected="no prefix is the beginning of another, and none can match more than its own keys",
        observed="; ".join(str(p) for p in problems),
        evidence=prefixes,
    )
    for workload in contract.workloads.values():
        parts = workload.example.removeprefix(workload.prefix).split(":")
        key = make_keyspace(workload.prefix).key(*parts)
        check(
            key == workload.example.encode(),
            expected=f"the contract's example {workload.example} is the key of its parts",
            observed=f"{parts} builds {key!r}",
            evidence={"workload": workload.name},
        )

    @against_a_server(max_examples=200)
    @given(name=st.sampled_from(sorted(prefixes)), parts=key_parts())
    def build(name: str, parts: tuple[bytes, ...]) -> None:
        key = make_keyspace(prefixes[name]).key(*parts)
        owners = [other for other, prefix in prefixes.items() if key.startswith(prefix.encode())]
        check(
            owners == [name],
            expected=f"a key built for {name} starts with {prefixes[name]} and no other prefix",
            observed=f"{parts!r:.200} builds {key!r:.200}, which lies under {owners or 'no prefix'}",
            evidence={"workload": name},
        )

    build()


@pytest.mark.cost_s(5)
@clause("ISO-02", needs={"write"})
def test_no_workload_changes_what_another_reads(
    target: Target, contract: Contract, make_keyspace: MakeKeyspace, rng: random.Random, evidence: Evidence
) -> None:
    """Hypothesis drives all commands that adapters use over the same adversarial names below every prefix.

    Names are used twice, encoded by the key builder and bare behind the prefix, as other clients write them.
    """
    run = rng.randbytes(6).hex()
    commands = 0
    prefixes = {w.prefix: target.namespace.prefix(w) for w in contract.workloads.values()}

    def built(prefix: str, name: bytes) -> bytes:
        nonlocal commands
        commands += 1
        return bytes(make_keyspace(prefixes[prefix]).key(run, name))

    def bare(prefix: str, name: bytes) -> bytes:
        nonlocal commands
        commands += 1
        return f"{prefixes[prefix]}{run}:".encode() + name

    with target.connect(deadline_s=30) as client:
        for make_key in (built, bare):
            machine = interference_machine(contract, client, make_key)
            examples = target.examples(14)
            run_machine(machine, max_examples=examples, steps=25)
    evidence.record(keys_built=commands)
    ensure(commands > 100, f"the state machines hardly ran: {commands} keys built")


@clause("ISO-03")
def test_key_building_is_injective(make_keyspace: MakeKeyspace, evidence: Evidence) -> None:
    """Different parts give different keys and parsing gives the parts back; the known collisions of others
    do not happen.
    """
    keyspace = make_keyspace("emb:")
    rivals: list[tuple[tuple[str | bytes | int, ...], tuple[str | bytes | int, ...]]] = [
        (("a:b", "c"), ("a", "b:c")),
        (("a", "b"), ("a:b",)),
        ((b"\x01\x02",), ("0102",)),
        (("a%3Ab",), ("a:b",)),
        (("a", ""), ("a",)),
        (("", "a"), ("a",)),
        (("a", "", "b"), ("a", "b")),
        (("{a}", "b"), ("a", "b")),
        (("A",), ("a",)),
        (("a ",), ("a",)),
        (("\u00e9",), ("e\u0301",)),
    ]
    for one, other in rivals:
        check(
            keyspace.key(*one) != keyspace.key(*other),
            expected="different parts give different keys",
            observed=f"{one} and {other} both give {keyspace.key(*one)!r}",
            evidence={"one": repr(one), "other": repr(other)},
        )
    seen: dict[bytes, tuple[bytes, ...]] = {}

    @against_a_server(max_examples=400)
    @given(parts=key_parts())
    def build(parts: tuple[bytes, ...]) -> None:
        key = keyspace.key(*parts)
        check(
            seen.setdefault(key, parts) == parts,
            expected="different parts give different keys",
            observed=f"{seen[key]!r:.200} and {parts!r:.200} both give {key!r:.200}",
        )
        try:
            parsed = tuple(keyspace.parse(key))
        except KeyFormatError as error:
            parsed = (str(error).encode(),)
        check(
            parsed == parts,
            expected="parsing a built key gives its parts back",
            observed=f"{parts!r:.200} came back as {parsed!r:.200}",
        )

    build()
    evidence.record(distinct_keys=len(seen), known_collisions_tried=len(rivals))


@pytest.mark.cost_s(3)
@clause("ISO-04", needs={"write", "config"})
def test_purge_removes_all_of_its_scope_and_nothing_else(
    servers: ServerFactory,
    contract: Contract,
    make_keyspace: MakeKeyspace,
    purge: Callable[..., Any],
    rng: random.Random,
    evidence: Evidence,
) -> None:
    """For any names, also those full of glob characters: the scope is empty afterwards, and every other
    key is there.

    On a server of its own: each purge walks all keys, which nobody's live server should be asked for dozens
    of times.
    """
    server = servers.scaled()
    run = rng.randbytes(6).hex()
    workloads = list(contract.workloads.values())
    purged = 0
    with server.connect(deadline_s=30) as client:
        # The shared beginning of siblings: a pattern that is not quoted reaches into them.
        siblings = [b"a", b"ab", b"a*", b"a?", b"[ab]", b"a:b", b"\\a", b"b"]

        def purge_one(workload: Any, scope: bytes, names: list[bytes]) -> None:
            nonlocal purged
            inside = [make_keyspace(workload.prefix).key(run, scope, name) for name in names]
            outside = [
                make_keyspace(other.prefix).key(run, place, name)
                for other in workloads
                for place in siblings
                for name in names[:2]
                if other is not workload or place != scope
            ]
            pipe = client.pipeline(transaction=False)
            for key in inside + outside:
                pipe.set(key, b"x", px=600_000)
            pipe.execute()
            purge(client, make_keyspace(workload.prefix).below(run, scope), deadline_s=30)
            left, kept = sum(present(client, inside)), sum(present(client, outside))
            client.unlink(*inside, *outside)
            purged += len(inside)
            check(
                left == 0,
                expected=f"nothing is left below {scope!r:.80} of {workload.name}",
                observed=f"{left} of {len(inside)} keys are",
                evidence={"workload": workload.name, "left": left},
            )
            check(
                kept == len(outside),
                expected=f"purging {scope!r:.80} of {workload.name} leaves every other key",
                observed=f"{len(outside) - kept} of {len(outside)} other keys are gone",
                evidence={"workload": workload.name, "others_removed": len(outside) - kept},
            )

        # Each of the known troublemakers for certain, then whatever else.
        for sibling in siblings:
            purge_one(workloads[0], sibling, [b"x", b"*"])

        @against_a_server(max_examples=20)
        @given(
            workload=st.sampled_from(workloads),
            scope=st.one_of(st.sampled_from(siblings), adversarial_parts()),
            names=st.lists(adversarial_parts(), min_size=1, max_size=6, unique=True),
        )
        def purge_any(workload: Any, scope: bytes, names: list[bytes]) -> None:
            purge_one(workload, scope, names)

        purge_any()
    evidence.record(keys_purged=purged)


@clause("ISO-04", needs={"write", "config"})
def test_purge_races_with_writers(
    servers: ServerFactory,
    contract: Contract,
    make_keyspace: MakeKeyspace,
    purge: Callable[..., Any],
    evidence: Evidence,
) -> None:
    """A whole workload is purged while all others write: what was there goes, what others acknowledge stays.

    The server's own count of commands shows that neither KEYS nor a FLUSH was used.
    """
    server = servers.scaled(settings={"maxmemory-policy": "noeviction"})
    doomed, *others = contract.workloads.values()
    stop = threading.Event()
    acknowledged: dict[str, list[bytes]] = {w.name: [] for w in others}
    errors: list[BaseException] = []

    def write(name: str, prefix: str) -> None:
        try:
            with server.connect(deadline_s=30) as client:
                number = 0
                while not stop.is_set() and number < 20_000:
                    key = bytes(make_keyspace(prefix).key("race", number))
                    client.set(key, b"x" * 64)
                    acknowledged[name].append(key)
                    number += 1
        except Exception as error:
            errors.append(error)  # raised again below, in the spec's thread

    with server.connect(deadline_s=30) as client:
        old = [bytes(make_keyspace(doomed.prefix).key("old", number)) for number in range(5000)]
        pipe = client.pipeline(transaction=False)
        for key in old:
            pipe.set(key, b"x" * 64)
        pipe.execute()
        threads = [threading.Thread(target=write, args=(w.name, w.prefix), daemon=True) for w in others]
        for thread in threads:
            thread.start()
        try:
            purge(client, make_keyspace(doomed.prefix), deadline_s=60)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        left = sum(present(client, old))
        owed = [key for keys in acknowledged.values() for key in keys]
        lost = len(owed) - sum(present(client, owed))
        calls = require_info(client, "commandstats")
        forbidden = [name for name in ("keys", "flushdb", "flushall") if f"cmdstat_{name}" in calls]
    numbers: Numbers = {
        "purged_keys": len(old),
        "left": left,
        "written_meanwhile": len(owed),
        "lost_of_others": lost,
        "forbidden_commands": ", ".join(forbidden) or "none",
    }
    evidence.record(**numbers)
    check(
        left == 0,
        expected=f"all {len(old)} keys that were there when the purge began are gone",
        observed=f"{left} are left",
        evidence=numbers,
    )
    check(
        lost == 0,
        expected="every key that another workload wrote meanwhile is there",
        observed=f"{lost} of {len(owed)} are gone",
        evidence=numbers,
    )
    check(
        not forbidden,
        expected="purging without KEYS, FLUSHDB and FLUSHALL, which stop or empty the server for all",
        observed=f"the server counted {', '.join(forbidden)}",
        evidence=numbers,
    )


@clause("ISO-05", needs={"config"})
def test_acl_users_reach_their_own_keys_only(
    servers: ServerFactory, contract: Contract, evidence: Evidence
) -> None:
    """With the generated ACL file each workload's user works on its own keys and is refused all others and
    all administration.
    """
    passwords = {name: secrets.token_urlsafe(24) for name in contract.workloads}
    server = servers.scaled(start=False)
    # An ACL file without the default user would open it, requirepass or not.
    keep_default = {"default": server.password} if server.password else {}
    acl_file = Path(server.folder) / "users.acl"
    acl_file.write_text(render_acl(contract, passwords={**passwords, **keep_default}), "utf-8")
    server.settings["aclfile"] = str(acl_file)
    try:
        server.start()
    except StartupError as error:
        reason = next((line for line in str(error).splitlines() if "users.acl" in line and "#" in line), "")
        check(
            False,
            expected="the server loads the ACL file that is made from the contract",
            observed=f"it refused to start with it: {reason[:300] or str(error)[:300]}",
        )
    administrative: tuple[tuple[str, ...], ...] = (
        ("CONFIG", "GET", "*"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("KEYS", "*"),
        ("DEBUG", "SLEEP", "0"),
        ("SHUTDOWN", "NOSAVE"),
        ("ACL", "LIST"),
        ("REPLICAOF", "NO", "ONE"),
        ("SAVE",),
    )
    tried: Counter[str] = Counter()
    wrong: list[str] = []
    for user in contract.workloads.values():
        with connect(server.url, username=user.name, password=passwords[user.name], deadline_s=10) as client:
            for owner in contract.workloads.values():
                key = owner.example.encode()
                commands: tuple[tuple[str | bytes, ...], ...] = (
                    ("SET", key, b"x", "PX", "60000"),
                    ("GET", key),
                    ("MGET", key),
                    ("EXISTS", key),
                    ("PEXPIRE", key, "60000"),
                    ("STRLEN", key),
                    ("UNLINK", key),
                )
                for words in commands:
                    allowed, tried["keys"] = permitted(client, words), tried["keys"] + 1
                    if allowed != (owner is user):
                        wrong.append(
                            f"{user.name} {'may' if allowed else 'may not'} {words[0]!s} {owner.example}"
                        )
            for words in administrative:
                tried["administrative"] += 1
                if permitted(client, words):
                    wrong.append(f"{user.name} may {' '.join(words)}")
    numbers: Numbers = {"key_commands_tried": tried["keys"], "administrative_tried": tried["administrative"]}
    evidence.record(**numbers, wrong=len(wrong))
    check(
        not wrong,
        expected="NOPERM for every command on another workload's keys and for every administrative one, "
        "and no other refusal",
        observed=f"{len(wrong)} commands; first: {wrong[0] if wrong else ''}",
        evidence={**numbers, "wrong": len(wrong)},
    )


def permitted(client: Client, words: tuple[str | bytes, ...]) -> bool:
    """Whether the server lets the client run a command; how it fares then does not matter."""
    try:
        client.execute_command(*words)
    except AccessDenied:
        return False
    except CommandRejected as error:
        # DEBUG and MODULE are refused to everybody by enable-debug-command and the like, before any ACL is
        # asked.
        return "not allowed" not in str(error)
    return True


@clause("ISO-06", needs={"read"})
def test_no_key_lies_outside_the_declared_prefixes(
    target: Target, contract: Contract, evidence: Evidence
) -> None:
    """A bounded walk over the keys finds none without an owner; foreign families are named and sized."""
    budget = 200_000
    prefixes = tuple(w.prefix.encode() for w in contract.workloads.values())
    foreign: Counter[bytes] = Counter()
    bytes_of: Counter[bytes] = Counter()
    walked, complete = 0, True
    with target.connect(deadline_s=30) as client:
        total = int(client.dbsize())
        for name in client.scan_iter(count=1000):
            if walked == budget:
                complete = False
                break
            walked += 1
            if not name.startswith(prefixes):
                family = name.split(b":")[0][:40]
                foreign[family] += 1
                if foreign[family] <= 20:
                    bytes_of[family] += int(client.memory_usage(name) or 0)
    # Rule of three: none among n sampled keys bounds their part below 3/n with 95 % confidence.
    bound = 0.0 if complete else 3 / max(walked, 1)
    families = ", ".join(
        f"{family.decode('utf-8', 'replace')}:* ({count} keys, about "
        f"{bytes_of[family] // min(count, 20) * count} bytes)"
        for family, count in foreign.most_common(10)
    )
    numbers: Numbers = {
        "keys_in_server": total,
        "keys_walked": walked,
        "whole_keyspace_walked": complete,
        "foreign_keys_found": foreign.total(),
        "foreign_part_upper_bound": round(bound, 6),
    }
    evidence.record(**numbers)
    check(
        not foreign,
        expected="every key starts with one of " + ", ".join(p.decode() for p in prefixes),
        observed=f"{foreign.total()} of {walked} keys do not: {families}",
        evidence=numbers,
    )
