"""The contract: what is shipped, how files combine, and what a wrong one is told."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_cache.contract import (
    CAPABILITIES,
    POLICIES,
    SHIPPED,
    Clause,
    Contract,
    DataClass,
    Deadlines,
    Instance,
    Level,
    Waiver,
    Workload,
    format_size,
    load,
    may_evict,
    parse_size,
)
from inference_cache.contract._rules import RULES, _all_of, _within
from inference_cache.errors import ContractError, ContractProblem, UsageError

TODAY = dt.date(2026, 11, 24)
DOCS = Path(__file__).parents[1] / "docs" / "contract.md"

CATALOGUE = {
    "CFG": 9,
    "ISO": 6,
    "MEM": 8,
    "DUR": 8,
    "KV": 12,
    "EMB": 6,
    "SES": 6,
    "RAY": 8,
    "SHR": 3,
    "AVL": 3,
    "OBS": 5,
    "SEC": 4,
}
NEW_WORKLOAD = """
[workloads.rerank]
prefix = "rerank:"
example = "rerank:sha256:abc"
data_class = "reconstructible"
ttl_s = 60
sliding_ttl = false
value_min = "1b"
value_max = "4kb"
share = 0.0
p99_s = 0.1
connections = 1
evictable = true
"""
WAIVER = """
[[waivers]]
clause = "CFG-06"
reason = "maintenance window"
issue = "ML-1"
expires = 2026-12-31
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a contract file into the working directory and gives its relative path."""
    monkeypatch.chdir(tmp_path)

    def write(content: str, *, name: str = "my.toml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))
        return path

    return write


def shipped_table(name: str = "adr_0023") -> dict[str, Any]:
    return tomllib.loads(resources.files("inference_cache.contract").joinpath(f"{name}.toml").read_text())


def problems_of(path: str | Path) -> tuple[ContractProblem, ...]:
    with pytest.raises(ContractError) as caught:
        load(path, today=TODAY)
    return caught.value.problems


class TestCatalogue:
    def test_holds_every_clause_of_every_group_in_order(self) -> None:
        expected = [f"{group}-{n:02}" for group, count in CATALOGUE.items() for n in range(1, count + 1)]

        assert list(load().clauses) == expected
        assert len(expected) == 78
        assert load().groups() == tuple(CATALOGUE)

    def test_ids_have_one_shape_and_name_their_group(self) -> None:
        for clause_id, clause in load().clauses.items():
            assert re.fullmatch(r"[A-Z]{2,3}-\d\d", clause_id)
            assert (clause.id, clause.group) == (clause_id, clause_id[:-3])

    def test_each_clause_says_what_where_from_and_what_to_do(self) -> None:
        for clause in load().clauses.values():
            for text in (clause.statement, clause.quote, clause.remedy):
                assert text.endswith("."), clause.id
                assert text.strip() == text, clause.id
            # One sentence: a reader holds a server against it as a whole.
            assert not re.search(r"[.;] [A-Z]", clause.statement), clause.id
            assert clause.needs <= CAPABILITIES

    def test_statements_are_all_different(self) -> None:
        statements = [clause.statement for clause in load().clauses.values()]

        assert len(set(statements)) == len(statements)

    def test_most_clauses_decide_and_the_rest_advise(self) -> None:
        should = {c.id for c in load().clauses.values() if c.level is Level.SHOULD}

        assert should == {
            "CFG-05", "CFG-06", "CFG-08", "ISO-05", "MEM-07", "DUR-07", "KV-11", "SHR-03", "SEC-02", "SEC-03",
        }  # fmt: skip
        assert all(c.level is Level.MUST for c in load().clauses.values() if c.id not in should)

    def test_a_clause_that_nothing_is_needed_for_has_no_needs(self) -> None:
        needless = {c.id for c in load().clauses.values() if not c.needs}

        assert needless == {"ISO-03", "KV-12", "EMB-02", "SES-04", "SEC-04"}


class TestShipped:
    def test_adr_0023_is_what_the_adr_decided(self) -> None:
        contract = load()

        assert contract.name == "adr_0023"
        assert contract.instance == Instance(
            address="valkey.ai-ml.svc.cluster.local:6379",
            memory_request_bytes=512 * 1024**2,
            memory_limit_bytes=2 * 1024**3,
            maxmemory_bytes=1536 * 1024**2,
            headroom_ratio=0.75,
            maxmemory_policy="allkeys-lru",
            maxmemory_tolerance=0.1,
            servers=("valkey",),
            supported_versions=("8", "9"),
            appendonly=True,
            appendfsync="everysec",
            save="3600 1 300 100 60 10000",
            loss_window_s=2.0,
            on_disk_full="stop-writes",
            volume_bytes=10 * 1024**3,
            volume_path="/data",
            auth=False,
            tls=False,
            reach="cluster-internal",
            retired_addresses=("mlcache.ai-ml.svc.cluster.local:6379",),
            fragmentation_ratio=1.5,
            chunk_bytes=64 * 1024**2,
        )
        assert {w.name: w.prefix for w in contract.workloads.values()} == {
            "vllm_kv": "vllm:kv:",
            "embeddings": "emb:",
            "ray": "ray:",
            "sessions": "session:",
        }
        assert contract.workloads["vllm_kv"].ttl_s == 3600
        assert contract.waivers == ()

    def test_adr_0023_meets_its_own_headroom(self) -> None:
        instance = load().instance

        assert instance.maxmemory_bytes <= instance.memory_limit_bytes * instance.headroom_ratio

    def test_only_copies_of_adr_0023_are_evictable_with_a_bound_and_a_name(self) -> None:
        only_copies = [w for w in load().workloads.values() if w.only_copy]

        assert {w.name for w in only_copies} == {"ray", "sessions"}
        assert all(w.evictable and w.loss_bound and w.accepted_by for w in only_copies)

    def test_the_safe_contract_evicts_every_cache_and_no_only_copy(self) -> None:
        contract = load("adr_0023_safe")

        assert contract.name == "adr_0023_safe"
        for workload in contract.workloads.values():
            evicts = may_evict(contract.instance.maxmemory_policy, has_ttl=workload.ttl_s is not None)
            assert evicts is not workload.only_copy
            assert workload.evictable is not workload.only_copy

    def test_the_safe_contract_shares_the_catalogue(self) -> None:
        assert load("adr_0023_safe").clauses == load().clauses

    @pytest.mark.parametrize("name", SHIPPED)
    def test_every_shipped_name_loads(self, name: str) -> None:
        assert load(name).name == name

    def test_shipped_files_and_names_are_the_same(self) -> None:
        files = resources.files("inference_cache.contract").iterdir()

        assert {f.name for f in files if f.name.endswith(".toml")} == {f"{name}.toml" for name in SHIPPED}

    @pytest.mark.parametrize("name", SHIPPED)
    def test_no_shipped_file_holds_a_secret_or_the_path_of_a_machine(self, name: str) -> None:
        text = resources.files("inference_cache.contract").joinpath(f"{name}.toml").read_text()

        assert not re.search(r"/(home|root|tmp|work|Users|mnt)\b", text)
        assert not re.search(r"://[^/\s]*@", text)
        assert not re.search(r"(?i)(password|secret|token)\s*=", text)

    def test_a_contract_cannot_be_changed(self) -> None:
        contract = load()

        with pytest.raises(dataclasses.FrozenInstanceError):
            contract.instance.auth = True  # type: ignore[misc]
        with pytest.raises(TypeError):
            contract.workloads["ray"] = contract.workloads["vllm_kv"]  # type: ignore[index]
        with pytest.raises(TypeError):
            del contract.clauses["CFG-01"]  # type: ignore[attr-defined]

    def test_rules_cover_every_field_that_a_file_writes(self) -> None:
        not_written = {
            Instance: set(),
            Workload: {"name"},
            Deadlines: set(),
            Clause: {"id", "group"},
            Waiver: set(),
        }

        assert set(RULES) == set(not_written)
        for cls, rules in RULES.items():
            fields = {f.name.removesuffix("_bytes") for f in dataclasses.fields(cls)}
            assert set(rules) == fields - not_written[cls]


class TestOverrides:
    def test_a_file_changes_only_what_it_says(self, write: Write) -> None:
        contract = load(write('[instance]\nmaxmemory = "1gb"\n'))

        assert contract.instance == dataclasses.replace(load().instance, maxmemory_bytes=1024**3)
        assert contract.workloads == load().workloads
        assert contract.deadlines == load().deadlines
        assert contract.clauses == load().clauses

    def test_single_keys_of_a_workload_are_overridden(self, write: Write) -> None:
        contract = load(write("[workloads.vllm_kv]\nttl_s = 7200\n"))

        expected = dataclasses.replace(load().workloads["vllm_kv"], ttl_s=7200)
        assert contract.workloads["vllm_kv"] == expected
        assert list(contract.workloads) == list(load().workloads)

    def test_a_complete_new_workload_is_added(self, write: Write) -> None:
        workload = load(write(NEW_WORKLOAD)).workloads["rerank"]

        assert (workload.name, workload.prefix, workload.value_max_bytes) == ("rerank", "rerank:", 4096)
        assert workload.data_class is DataClass.RECONSTRUCTIBLE
        assert workload.loss_bound is None

    def test_a_workload_is_removed_by_name(self, write: Write) -> None:
        contract = load(write('remove_workloads = ["ray"]\n'))

        assert list(contract.workloads) == ["vllm_kv", "embeddings", "sessions"]

    def test_a_removed_workload_frees_its_prefix_and_share(self, write: Write) -> None:
        new = NEW_WORKLOAD.replace("rerank:", "ray:").replace("share = 0.0", "share = 0.2")

        assert load(write(f'remove_workloads = ["ray"]\n{new}')).workloads["rerank"].prefix == "ray:"

    def test_none_takes_back_a_value_of_the_base(self, write: Write) -> None:
        contract = load(write('[workloads.sessions]\nttl_s = "none"\nsliding_ttl = false\n'))

        assert contract.workloads["sessions"].ttl_s is None

    def test_lists_replace_and_do_not_add_up(self, write: Write) -> None:
        contract = load(write('[instance]\nsupported_versions = ["9.1"]\nretired_addresses = []\n'))

        assert contract.instance.supported_versions == ("9.1",)
        assert contract.instance.retired_addresses == ()

    def test_a_file_extends_another_relative_to_itself(self, write: Write) -> None:
        write('extends = "adr_0023_safe"\n[deadlines]\ncall_s = 3\nconnect_s = 4\n', name="org/base.toml")
        contract = load(
            write('extends = "../org/base.toml"\n[deadlines]\ncall_s = 0.5\n', name="team/my.toml")
        )

        assert contract.instance.maxmemory_policy == "volatile-lru"
        assert (contract.deadlines.call_s, contract.deadlines.connect_s) == (0.5, 4.0)

    def test_without_a_name_it_is_named_after_its_file(self, write: Write) -> None:
        assert load(write("", name="team-a.toml")).name == "team-a"
        assert load(write('name = "ml"\n')).name == "ml"

    def test_a_path_may_be_text(self, write: Write) -> None:
        assert load(str(write(""))) == load(Path("my.toml"))

    @pytest.mark.parametrize(
        "body",
        [
            '[instance]\nmaxmemory = "2Gi"\n',
            '[instance]\nmemory_limit = "1536Mi"\n',
            "[instance]\nauth = true\nreach = 'anywhere'\n",
            "[instance]\naddress = '[::1]:6379'\n",
            "[instance]\naddress = '10.0.0.1:6379'\n",
            "[instance]\nsave = ''\n",
            "[instance]\nservers = ['valkey', 'redis']\nsupported_versions = ['7.2']\n",
            "[instance]\nappendfsync = 'always'\nloss_window_s = 0\n",
            "[instance]\nmaxmemory_policy = 'noeviction'\n[workloads.embeddings]\nttl_s = 'none'\n",
            "[instance]\nmaxmemory_policy = 'volatile-ttl'\n",
            "[workloads.embeddings]\nttl_s = 'none'\n",
            "[instance]\nchunk = '1b'\n",
            "[instance]\nheadroom_ratio = 1\nmaxmemory_tolerance = 0\nfragmentation_ratio = 1\n",
            "[instance]\nheadroom_ratio = 0.001\nmaxmemory_tolerance = 1\n",
            "[instance]\naddress = 'h:1'\nretired_addresses = ['h:65535']\n",
            "[workloads.ray]\nvalue_min = '1gb'\nvalue_max = '1gb'\nshare = 0\nconnections = 1\n",
            "[deadlines]\ncall_s = 1\n",
            "remove_workloads = []\n",
            WAIVER,
        ],
    )
    def test_a_good_contract_loads(self, write: Write, body: str) -> None:
        assert load(write(body), today=TODAY).name == "my"


class TestEvictableOnlyCopies:
    """Whether they may be evicted is CFG-09's verdict on the server's policy: the contract loads."""

    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("ttl", ["60", '"none"'])
    @pytest.mark.parametrize("evictable", ["true", "false"])
    @pytest.mark.parametrize("accepted", ["loss_bound", "accepted_by", "neither"])
    def test_load_whatever_policy_ttl_and_acceptance_are(
        self, write: Write, policy: str, ttl: str, evictable: str, accepted: str
    ) -> None:
        texts = {"loss_bound": "none", "accepted_by": "none", accepted: "all of it"}
        contract = load(
            write(f"""
                [instance]
                maxmemory_policy = "{policy}"
                [workloads.ray]
                ttl_s = {ttl}
                evictable = {evictable}
                loss_bound = "{texts["loss_bound"]}"
                accepted_by = "{texts["accepted_by"]}"
            """)
        )

        workload = contract.workloads["ray"]
        assert workload.evictable is (evictable == "true")
        assert not (workload.loss_bound and workload.accepted_by)

    @pytest.mark.parametrize("policy", POLICIES)
    def test_the_safe_workloads_load_under_every_policy(self, write: Write, policy: str) -> None:
        path = write(f'extends = "adr_0023_safe"\n[instance]\nmaxmemory_policy = "{policy}"\n')

        assert load(path).instance.maxmemory_policy == policy


class TestDigest:
    def test_equal_values_have_equal_digests_wherever_they_are_written(self, write: Write) -> None:
        one = load(write('[instance]\nmaxmemory = "1gb"\n', name="one.toml"))
        write('[instance]\nmaxmemory = "1Gi"\ntls = true\n', name="base.toml")
        two = load(write('extends = "base.toml"\n[instance]\ntls = false\n', name="two.toml"))

        assert one.sha256 == two.sha256
        assert re.fullmatch(r"[0-9a-f]{64}", one.sha256)

    def test_an_empty_override_has_the_digest_of_its_base(self, write: Write) -> None:
        assert load(write("")).sha256 == load().sha256

    def test_whole_numbers_and_fractions_of_one_value_are_equal(self, write: Write) -> None:
        assert load(write("[deadlines]\ncall_s = 1.0\n")).sha256 == load().sha256

    @pytest.mark.parametrize(
        "body",
        [
            '[instance]\nmaxmemory = "1gb"\n',
            "[workloads.ray]\nconnections = 1\n",
            "[deadlines]\nspill_s = 31\n",
            'remove_workloads = ["ray"]\n',
            WAIVER,
        ],
    )
    def test_any_changed_value_changes_it(self, write: Write, body: str) -> None:
        assert load(write(body), today=TODAY).sha256 != load().sha256

    def test_it_is_the_same_in_every_process(self) -> None:
        # Sets of text have another order under another hash seed; the digest must not follow it.
        script = "from inference_cache.contract import load; print(load().sha256)"
        digests = {
            subprocess.run(
                [sys.executable, "-c", script],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            ).stdout.strip()
            for seed in ("1", "2", "3")
        }

        assert digests == {load().sha256}


class TestWaivers:
    def test_a_waiver_names_clause_reason_issue_and_last_day(self, write: Write) -> None:
        contract = load(write(WAIVER), today=TODAY)

        expected = Waiver(
            clause="CFG-06", reason="maintenance window", issue="ML-1", expires=dt.date(2026, 12, 31)
        )
        assert contract.waivers == (expected,)
        assert contract.waiver_for("CFG-06") == expected
        assert contract.waiver_for("CFG-05") is None
        assert expected.in_force(dt.date(2026, 12, 31))
        assert not expected.in_force(dt.date(2027, 1, 1))

    def test_one_that_has_run_out_still_loads(self, write: Write) -> None:
        contract = load(write(WAIVER), today=dt.date(2030, 1, 1))

        assert not contract.waivers[0].in_force(dt.date(2030, 1, 1))

    def test_waivers_of_all_files_add_up(self, write: Write) -> None:
        write(WAIVER, name="org.toml")
        contract = load(write('extends = "org.toml"\n' + WAIVER.replace("06", "05")), today=TODAY)

        assert [w.clause for w in contract.waivers] == ["CFG-06", "CFG-05"]

    def test_they_last_from_today_on_in_utc_unless_a_day_is_given(self, write: Write) -> None:
        tomorrow = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=1)
        path = write(WAIVER.replace("2026-12-31", str(tomorrow)))
        assert load(path).waivers[0].expires == tomorrow
        with pytest.raises(ContractError, match="for a time"):
            load(write(WAIVER.replace("2026-12-31", str(tomorrow + dt.timedelta(days=400)))))

    def test_one_may_last_366_days_and_no_longer(self, write: Write) -> None:
        path = write(WAIVER)

        assert load(path, today=dt.date(2025, 12, 30)).waivers
        with pytest.raises(
            ContractError, match=r"waivers\[0\]\.expires: found 2026-12-31, allowed: a date up to"
        ):
            load(path, today=dt.date(2025, 12, 29))

    def test_a_duplicate_is_told_in_the_file_that_adds_it(self, write: Write) -> None:
        write(WAIVER, name="org.toml")
        (problem,) = problems_of(write('extends = "org.toml"\n' + WAIVER))

        assert (problem.file, problem.key) == ("my.toml", "waivers[0].clause")
        assert problem.found == "'CFG-06' a second time"


INSTANCE, RAY, EMB = "[instance]\n", "[workloads.ray]\n", "[workloads.embeddings]\n"

MISTAKES: dict[str, tuple[str, str, str, str, str | None]] = {
    # name: (body of my.toml, key, part of what was found, part of what is allowed, suggestion)
    "unknown top-level key": ("instanc = 1", "instanc", "unknown key", "one of name, extends", "instance"),
    "section is no table": ("deadlines = 3", "deadlines", "3", "a table with connect_s, call_s", None),
    "workloads are no tables": ("workloads = 3", "workloads", "3", "tables, such as", None),
    "workload is no table": ("[workloads]\nray = 3", "workloads.ray", "3", "a table with prefix", None),
    "unknown instance key": (
        INSTANCE + "maxmemory_bytes = 5",
        "instance.maxmemory_bytes",
        "unknown key",
        "one of address",
        "maxmemory",
    ),
    "unknown workload key": (EMB + "ttl = 5", "workloads.embeddings.ttl", "unknown key", "ttl_s", "ttl_s"),
    "unknown deadline": (
        "[deadlines]\nrecover_s = 1",
        "deadlines.recover_s",
        "unknown",
        "recovery_s",
        "recovery_s",
    ),
    "misspelt workload": (
        "[workloads.vllmkv]\nttl_s = 60",
        "workloads.vllmkv",
        "a new workload without prefix",
        "the name of one to override: vllm_kv",
        "vllm_kv",
    ),
    "workload name": (
        NEW_WORKLOAD.replace(".rerank]", ".Re-Rank]"),
        "workloads.Re-Rank",
        "'Re-Rank'",
        "lower",
        None,
    ),
    "incomplete new workload": (
        NEW_WORKLOAD.replace("p99_s = 0.1\n", ""),
        "workloads.rerank.p99_s",
        "nothing",
        "seconds above 0",
        None,
    ),
    "misspelt key of a new workload": (
        NEW_WORKLOAD.replace("p99_s", "p99_ms"),
        "workloads.rerank.p99_ms",
        "unknown key",
        "p99_s",
        "p99_s",
    ),
    "size without unit": (
        INSTANCE + 'maxmemory = "1536"',
        "instance.maxmemory",
        "'1536'",
        "with its unit",
        None,
    ),
    "size as number": (INSTANCE + "maxmemory = 1536", "instance.maxmemory", "1536", "with its unit", None),
    "size with wrong unit": (INSTANCE + 'volume = "10GiB"', "instance.volume", "'10GiB'", '"2Gi"', None),
    "chunk without unit": (INSTANCE + "chunk = 64", "instance.chunk", "64", "with its unit", None),
    "size of nothing": (INSTANCE + 'maxmemory = "0mb"', "instance.maxmemory", "'0mb'", "above 0", None),
    "text for a number": (
        EMB + 'ttl_s = "3600"',
        "workloads.embeddings.ttl_s",
        "'3600'",
        "whole number",
        None,
    ),
    "fraction for a whole number": (
        EMB + "ttl_s = 1.5",
        "workloads.embeddings.ttl_s",
        "1.5",
        "whole number",
        None,
    ),
    "no time at all": (EMB + "ttl_s = 0", "workloads.embeddings.ttl_s", "0", "above 0", None),
    "yes for true": (INSTANCE + 'tls = "yes"', "instance.tls", "'yes'", "true or false", None),
    "true for a number": (RAY + "connections = true", "workloads.ray.connections", "true", "1 or more", None),
    "not a number": ("[deadlines]\ncall_s = nan", "deadlines.call_s", "nan", "seconds above 0", None),
    "endless": ("[deadlines]\ncall_s = inf", "deadlines.call_s", "inf", "seconds above 0", None),
    "negative window": (INSTANCE + "loss_window_s = -1", "instance.loss_window_s", "-1", "0 or more", None),
    "ratio above 1": (INSTANCE + "headroom_ratio = 75", "instance.headroom_ratio", "75", "at most 1", None),
    "ratio of 0": (INSTANCE + "headroom_ratio = 0", "instance.headroom_ratio", "0", "above 0", None),
    "tolerance in per cent": (
        INSTANCE + "maxmemory_tolerance = 10",
        "instance.maxmemory_tolerance",
        "10",
        "from 0 to 1",
        None,
    ),
    "fragmentation below 1": (
        INSTANCE + "fragmentation_ratio = 0.5",
        "instance.fragmentation_ratio",
        "0.5",
        "1 or more",
        None,
    ),
    "share above 1": (RAY + "share = 20", "workloads.ray.share", "20", "from 0 to 1", None),
    "unknown policy": (
        INSTANCE + 'maxmemory_policy = "lru"',
        "instance.maxmemory_policy",
        "'lru'",
        "allkeys-lru",
        None,
    ),
    "unknown fsync": (
        INSTANCE + 'appendfsync = "sometimes"',
        "instance.appendfsync",
        "'sometimes'",
        "everysec",
        None,
    ),
    "unknown reach": (INSTANCE + 'reach = "public"', "instance.reach", "'public'", "cluster-internal", None),
    "unknown disk choice": (
        INSTANCE + 'on_disk_full = "die"',
        "instance.on_disk_full",
        "'die'",
        "go-on",
        None,
    ),
    "unknown data class": (
        RAY + 'data_class = "copy"',
        "workloads.ray.data_class",
        "'copy'",
        "only-copy",
        None,
    ),
    "schedule": (INSTANCE + 'save = "3600"', "instance.save", "'3600'", "pairs of seconds and changes", None),
    "address with scheme": (
        INSTANCE + 'address = "valkey://h:6379"',
        "instance.address",
        "'valkey://h:6379'",
        "host:port",
        None,
    ),
    "address without port": (INSTANCE + 'address = "h"', "instance.address", "'h'", "host:port", None),
    "port too high": (INSTANCE + 'address = "h:65536"', "instance.address", "'h:65536'", "host:port", None),
    "retired address": (
        INSTANCE + 'retired_addresses = ["old"]',
        "instance.retired_addresses",
        "['old']",
        "list of host:port",
        None,
    ),
    "retired addresses no list": (
        INSTANCE + 'retired_addresses = "old:1"',
        "instance.retired_addresses",
        "'old:1'",
        "list of host:port",
        None,
    ),
    "address in use is retired": (
        INSTANCE + 'retired_addresses = ["valkey.ai-ml.svc.cluster.local:6379"]',
        "instance.retired_addresses",
        "as address and as retired",
        "without the address in use",
        None,
    ),
    "version as number": (
        INSTANCE + "supported_versions = [8]",
        "instance.supported_versions",
        "[8]",
        "in quotes",
        None,
    ),
    "version with words": (
        INSTANCE + 'supported_versions = ["9.x"]',
        "instance.supported_versions",
        "['9.x']",
        '"9.1"',
        None,
    ),
    "versions as numbers": (
        INSTANCE + "supported_versions = [8, 9.1]",
        "instance.supported_versions",
        "[8, 9.1]",
        "in quotes",
        None,
    ),
    "no version": (
        INSTANCE + "supported_versions = []",
        "instance.supported_versions",
        "[]",
        '["8", "9.1"]',
        None,
    ),
    "no server": (INSTANCE + "servers = []", "instance.servers", "[]", '["valkey"]', None),
    "relative volume path": (
        INSTANCE + 'volume_path = "data"',
        "instance.volume_path",
        "'data'",
        "absolute",
        None,
    ),
    "empty prefix": (RAY + 'prefix = ""', "workloads.ray.prefix", "''", "followed by ':'", None),
    "prefix without colon": (
        RAY + 'prefix = "ray"',
        "workloads.ray.prefix",
        "'ray'",
        "followed by ':'",
        None,
    ),
    "glob prefix": (RAY + 'prefix = "ray*:"', "workloads.ray.prefix", "'ray*:'", "letters, digits", None),
    "hash tag prefix": (
        RAY + 'prefix = "{ray}:"',
        "workloads.ray.prefix",
        "'{ray}:'",
        "letters, digits",
        None,
    ),
    "same prefix": (
        RAY + 'prefix = "session:"\nexample = "session:x"',
        "workloads.ray.prefix",
        "'session:' of ray and 'session:' of sessions",
        "none begins with another",
        None,
    ),
    "overlapping prefix": (
        RAY + 'prefix = "vllm:"\nexample = "vllm:x"',
        "workloads.ray.prefix",
        "'vllm:kv:' of vllm_kv and 'vllm:' of ray",
        "none begins with another",
        None,
    ),
    "example elsewhere": (
        RAY + 'example = "rey:x"',
        "workloads.ray.example",
        "'rey:x'",
        "starts with the prefix",
        None,
    ),
    "example is the prefix": (
        RAY + 'example = "ray:"',
        "workloads.ray.example",
        "'ray:'",
        "goes on after it",
        None,
    ),
    "prefix leaves its example": (
        RAY + 'prefix = "r:"',
        "workloads.ray.prefix",
        "'ray:actor:xyz'",
        "starts",
        None,
    ),
    "shares": (RAY + "share = 0.3", "workloads.ray.share", "add up to 1.1 (vllm_kv 0.5", "at most 1", None),
    "sizes the wrong way round": (
        RAY + 'value_min = "2gb"',
        "workloads.ray.value_min",
        "value_min 2gb with value_max 1gb",
        "at most",
        None,
    ),
    "maxmemory above the limit": (
        INSTANCE + 'maxmemory = "3gb"',
        "instance.maxmemory",
        "3gb with memory_limit 2gb",
        "at most memory_limit",
        None,
    ),
    "limit below maxmemory": (
        INSTANCE + 'memory_limit = "1Gi"',
        "instance.memory_limit",
        "maxmemory 1536mb with memory_limit 1gb",
        "at most memory_limit",
        None,
    ),
    "request above the limit": (
        INSTANCE + 'memory_request = "4Gi"',
        "instance.memory_request",
        "memory_request 4gb",
        "at most",
        None,
    ),
    "open to the world": (
        INSTANCE + 'reach = "anywhere"',
        "instance.reach",
        'auth = false with reach = "anywhere"',
        "auth = true",
        None,
    ),
    "sliding without TTL": (
        RAY + "sliding_ttl = true",
        "workloads.ray.sliding_ttl",
        "sliding_ttl = true",
        "sliding_ttl = false",
        None,
    ),
    "blank text": (
        RAY + 'accepted_by = " "',
        "workloads.ray.accepted_by",
        "' '",
        "a text that says something",
        None,
    ),
    "cache without a TTL under volatile": (
        f'extends = "adr_0023_safe"\n{EMB}ttl_s = "none"',
        "workloads.embeddings.ttl_s",
        "volatile-lru, which evicts only keys with a TTL",
        "a TTL on every reconstructible workload",
        None,
    ),
    "taken name": ('name = "adr_0023"', "name", "'adr_0023'", "a name of its own", None),
    "name with a slash": ('name = "a/b"', "name", "'a/b'", "letters, digits", None),
    "changed clause": (
        '[clauses.CFG-01]\nlevel = "MAY"',
        "clauses.CFG-01",
        "override",
        "use [[waivers]]",
        None,
    ),
    "clauses emptied": ("[clauses]", "clauses", "override", "use [[waivers]]", None),
    "removes nothing known": (
        'remove_workloads = ["rai"]',
        "remove_workloads",
        "'rai'",
        "vllm_kv, embeddings",
        "ray",
    ),
    "removal no list": ('remove_workloads = "ray"', "remove_workloads", "'ray'", '["ray"]', None),
    "removes what it writes": (
        'remove_workloads = ["ray"]\n[workloads.ray]\nshare = 0.1',
        "remove_workloads",
        "'ray'",
        "not also write",
        None,
    ),
    "removes all": (
        'remove_workloads = ["vllm_kv", "embeddings", "ray", "sessions"]',
        "remove_workloads",
        "every workload",
        "at least one",
        None,
    ),
    "waivers no list": (
        '[waivers]\nclause = "CFG-06"',
        "waivers",
        "a table with clause",
        "[[waivers]]",
        None,
    ),
    "waiver no table": ("waivers = [1]", "waivers[0]", "1", "a table with clause, reason", None),
    "waiver of an unknown clause": (
        WAIVER.replace("CFG-06", "cfg-6"),
        "waivers[0].clause",
        "'cfg-6'",
        "nearest are CFG-06",
        "CFG-06",
    ),
    "waiver of something unlike a clause": (
        WAIVER.replace("CFG-06", "???"),
        "waivers[0].clause",
        "'???'",
        "the id of a clause; the nearest are",
        None,
    ),
    "waiver without end": (
        WAIVER.replace("expires = 2026-12-31", ""),
        "waivers[0].expires",
        "nothing",
        "such as 2026-12-31",
        None,
    ),
    "waiver with a misspelt end": (
        WAIVER.replace("expires", "expire"),
        "waivers[0].expire",
        "unknown key",
        "expires",
        "expires",
    ),
    "waiver without a date": (
        WAIVER.replace("2026-12-31", '"soon"'),
        "waivers[0].expires",
        "'soon'",
        "such as 2026-12-31",
        None,
    ),
    "waiver for ever": (
        WAIVER.replace("2026", "2999"),
        "waivers[0].expires",
        "2999-12-31",
        "up to 2027-11-25 (366 days",
        None,
    ),
    "waiver without reason": (
        WAIVER.replace("maintenance window", ""),
        "waivers[0].reason",
        "''",
        "says something",
        None,
    ),
    "empty text": (
        RAY + 'loss_bound = ""',
        "workloads.ray.loss_bound",
        "''",
        "a text that says something",
        None,
    ),
    "name is no text": ("name = 3", "name", "3", "a name of letters", None),
    "removes a number": (
        "remove_workloads = [1]",
        "remove_workloads",
        "[1]",
        "a list of workload names",
        None,
    ),
    "removes something made up": (
        'remove_workloads = ["sessions", "nothing_like_it"]',
        "remove_workloads",
        "'nothing_like_it'",
        "workloads of the contract it extends",
        None,
    ),
    "key that is not bare": ('"a b" = 1', "'a b'", "unknown key", "one of name", None),
    "table for a value": (
        RAY + "share = { a = 1, b = 2 }",
        "workloads.ray.share",
        "a table with a, b",
        "0 to 1",
        None,
    ),
    "empty table for a value": (
        RAY + "share = {}",
        "workloads.ray.share",
        "a table with nothing in it",
        "0 to 1",
        None,
    ),
    "date for a value": (RAY + "share = 2026-12-31", "workloads.ray.share", "2026-12-31", "0 to 1", None),
    "second waiver": (
        WAIVER * 2,
        "waivers[1].clause",
        "'CFG-06' a second time",
        "one waiver per clause",
        None,
    ),
}

MESSAGES: dict[str, str] = json.loads((Path(__file__).parent / "data" / "contract_messages.json").read_text())
"""The whole message of each mistake."""


class TestMistakes:
    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_each_is_one_problem_with_file_key_found_and_allowed(self, write: Write, mistake: str) -> None:
        body, key, found, allowed, suggestion = MISTAKES[mistake]
        problems = problems_of(write(body))

        assert [(p.file, p.key) for p in problems] == [("my.toml", key)]
        assert found in problems[0].found
        assert allowed in problems[0].allowed
        assert problems[0].suggestion == suggestion

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_each_is_told_in_these_words(self, write: Write, mistake: str) -> None:
        assert str(ContractError(problems_of(write(MISTAKES[mistake][0])))) == MESSAGES[mistake]

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_none_is_told_in_the_validator_s_jargon(self, write: Write, mistake: str) -> None:
        message = str(ContractError(problems_of(write(MISTAKES[mistake][0]))))

        assert not re.search(r"pydantic|validation|type=|literal|should be a valid|input", message)

    def test_all_are_told_at_once(self, write: Write) -> None:
        path = write("""
            nam = "x"
            [instance]
            maxmemory = "3gb"
            tls = "no"
            [workloads.ray]
            prefix = "emb:"
            example = "emb:x"
            loss_bound = " "
            accepted_by = " "
            [[waivers]]
            clause = "XYZ-01"
            reason = ""
            [clauses.CFG-01]
            level = "MAY"
        """)

        assert sorted(p.key for p in problems_of(path)) == [
            "clauses.CFG-01",
            "instance.maxmemory",
            "instance.tls",
            "nam",
            "waivers[0].clause",
            "waivers[0].expires",
            "waivers[0].issue",
            "waivers[0].reason",
            "workloads.ray.accepted_by",
            "workloads.ray.loss_bound",
            "workloads.ray.prefix",
        ]

    def test_a_wrong_key_does_not_drag_others_down(self, write: Write) -> None:
        (problem,) = problems_of(write('[workloads.ray]\nprefix = "*"\nshare = 0.1\n'))

        assert problem.key == "workloads.ray.prefix"

    def test_the_file_that_wrote_the_key_is_named(self, write: Write) -> None:
        write('[instance]\ntls = 1\nauth = 1\n[workloads.rerank]\nprefix = "rerank:"\n', name="org/base.toml")
        problems = problems_of(write('extends = "org/base.toml"\n[instance]\nauth = 2\n'))

        files = {p.key: p.file for p in problems}
        assert files["instance.tls"] == "org/base.toml"
        assert files["instance.auth"] == "my.toml"
        assert files["workloads.rerank.ttl_s"] == "org/base.toml"

    def test_of_a_workload_removed_and_written_anew_what_is_missing_is_told_where_it_is_anew(
        self, write: Write
    ) -> None:
        write('remove_workloads = ["ray"]\n', name="org.toml")
        problems = problems_of(write('extends = "org.toml"\n[workloads.ray]\nshare = 0.1\n'))

        assert {p.file for p in problems} == {"my.toml"}
        assert [p.key for p in problems][:2] == ["workloads.ray.prefix", "workloads.ray.example"]

    def test_what_was_written_by_others_stays_theirs_when_a_workload_is_removed(self, write: Write) -> None:
        write("[instance]\ntls = 1\n[workloads.sessions]\nshare = 7\n", name="org.toml")
        problems = problems_of(write('extends = "org.toml"\nremove_workloads = ["ray"]\n'))

        assert [(p.file, p.key) for p in problems] == [
            ("org.toml", "instance.tls"),
            ("org.toml", "workloads.sessions.share"),
        ]

    def test_a_contradiction_is_told_where_it_can_be_resolved(self, write: Write) -> None:
        write('[workloads.embeddings]\nttl_s = "none"\n', name="org.toml")
        problems = problems_of(write('extends = "org.toml"\n[instance]\nmaxmemory_policy = "volatile-lru"\n'))

        assert [(p.file, p.key) for p in problems] == [("my.toml", "instance.maxmemory_policy")]

    @pytest.mark.parametrize(
        "body",
        [
            'address = "valkey://admin:hunter2@h:6379"',
            'address = "admin:hun/ter\'hunter2@h:6379"',
            'retired_addresses = ["redis://:hunter2@h:6379"]',
            'password = "hunter2"',
            'requirepass = { value = "hunter2" }',
        ],
    )
    def test_no_message_repeats_a_password(self, write: Write, body: str) -> None:
        assert "hunter2" not in str(ContractError(problems_of(write(f"[instance]\n{body}\n"))))

    def test_a_long_value_is_shortened(self, write: Write) -> None:
        (problem,) = problems_of(write(f'[instance]\nsave = "{"9" * 5000}"\n'))

        assert len(problem.found) == 100
        assert problem.found.endswith("9...")

    @pytest.mark.parametrize(("digits", "shortened"), [(98, False), (99, True)])
    def test_a_value_of_100_characters_is_shown_whole(
        self, write: Write, digits: int, shortened: bool
    ) -> None:
        (problem,) = problems_of(write(f'[instance]\nsave = "{"9" * digits}"\n'))

        assert len(problem.found) == 100
        assert problem.found.endswith("...") == shortened

    def test_what_comes_before_an_at_sign_is_not_shown(self, write: Write) -> None:
        (problem,) = problems_of(write('[instance]\naddress = "user@secret@host"\n'))

        assert problem.found == "'***@host'"


SCALARS = st.one_of(st.just("none"), st.text(max_size=8), st.booleans(), st.integers(), st.floats())
KEYS = st.sampled_from(
    [
        (table, key)
        for table, cls in [
            ("[instance]", Instance),
            ("[workloads.ray]", Workload),
            ("[deadlines]", Deadlines),
            ("[[waivers]]", Waiver),
        ]
        for key in RULES[cls]
    ]
)


def toml(value: object) -> str:
    if isinstance(value, float):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


class TestAnyValue:
    # Each example writes and reads a file, which takes as long as the disk likes.
    @settings(deadline=None)
    @given(KEYS, st.one_of(SCALARS, st.lists(SCALARS, max_size=3)))
    def test_is_either_taken_or_told_as_a_mistake_of_the_file(
        self, tmp_path_factory: pytest.TempPathFactory, where: tuple[str, str], value: object
    ) -> None:
        path = tmp_path_factory.mktemp("any") / "my.toml"
        literal = f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else toml(value)
        path.write_text(f"{where[0]}\n{where[1]} = {literal}\n")
        try:
            contract = load(path, today=TODAY)
        except ContractError as error:
            problems = error.problems
        else:
            problems = ()
            assert contract.name == "my"

        assert {problem.file for problem in problems} <= {str(path)}


class TestRules:
    """The makers of rules; what they make is asked about every key above."""

    def test_a_range_holds_with_both_ends(self) -> None:
        accepts = _within(0.25, 0.75)
        assert [accepts(value) for value in (0.24, 0.25, 0.5, 0.75, 0.76)] == [False, True, True, True, False]

    def test_a_list_has_one_item_at_least_and_good_ones_only(self) -> None:
        accepts = _all_of(re.compile("[a-z]+"))
        assert [accepts(items) for items in (("a", "bc"), (), ("a", "B"), ("a1",))] == [
            True,
            False,
            False,
            False,
        ]


class TestFiles:
    def test_a_missing_file_is_named_with_what_is_shipped(self, write: Write) -> None:
        (problem,) = problems_of("adr_0032")

        assert problem.file == "adr_0032"
        assert problem.found == "no such file or directory"
        assert problem.allowed == "a readable TOML file, or a shipped contract: adr_0023, adr_0023_safe"
        assert problem.suggestion == "adr_0023"

    def test_a_missing_base_is_told_in_the_file_that_names_it(self, write: Write) -> None:
        (problem,) = problems_of(write('extends = "org.toml"\n'))

        assert (problem.file, problem.key) == ("my.toml", "extends")
        assert problem.found == "'org.toml' (no such file or directory)"
        assert "adr_0023, adr_0023_safe" in problem.allowed

    @pytest.mark.parametrize(
        ("source", "found"), [(".", "is a directory"), ("", "is a directory"), ("a\0b", "not a path")]
    )
    def test_what_is_no_file_is_told_so(self, source: str, found: str) -> None:
        (problem,) = problems_of(source)

        assert (problem.file, problem.key, problem.found) == (source, "(file)", found)
        assert "readable TOML file" in problem.allowed

    def test_what_cannot_be_read_for_no_stated_reason_is_told_so(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(path: Path) -> bytes:
            raise OSError(f"{path} cannot be read")

        path = write("")
        monkeypatch.setattr(Path, "read_bytes", fail)
        (problem,) = problems_of(path)

        assert problem.found == "unreadable"

    def test_a_misspelt_base_is_told_with_the_one_that_was_meant(self, write: Write) -> None:
        (problem,) = problems_of(write('extends = "adr_0032"\n'))

        assert (problem.file, problem.key, problem.suggestion) == ("my.toml", "extends", "adr_0023")

    @pytest.mark.parametrize(
        ("extends", "found"), [("3", "3"), ('""', "''"), ('["adr_0023"]', "['adr_0023']")]
    )
    def test_extends_is_one_name(self, write: Write, extends: str, found: str) -> None:
        (problem,) = problems_of(write(f"extends = {extends}\n"))

        assert (problem.file, problem.key, problem.found) == ("my.toml", "extends", found)
        assert problem.allowed == "one of adr_0023, adr_0023_safe, or the path of a contract file"

    def test_files_cannot_extend_each_other_in_a_circle(self, write: Write) -> None:
        write('extends = "my.toml"\n', name="other.toml")
        (problem,) = problems_of(write('extends = "./other.toml"\n'))

        assert (problem.file, problem.key, problem.found) == ("other.toml", "extends", "'my.toml'")
        assert problem.allowed == "a contract that does not extend this one"

    @pytest.mark.parametrize(
        ("content", "where"),
        [
            ("[instance]\nmaxmemory 3gb\n", "line 2, column 11"),
            ("[instance]\ntls = yes\n", "line 2, column 7"),
            ("[instance]\ntls = true\ntls = false\n", "line 3, column 12"),
            ("name = 'x'\n[instance", "line 2, column 10"),
        ],
    )
    def test_a_syntax_error_has_line_and_column(self, write: Write, content: str, where: str) -> None:
        (problem,) = problems_of(write(content))

        assert (problem.file, problem.key, problem.allowed) == ("my.toml", where, "TOML 1.0")
        assert problem.found.startswith("a syntax error (")
        assert "line" not in problem.found

    def test_bytes_that_are_not_utf_8_have_line_and_column(self, write: Write) -> None:
        path = write("")
        path.write_bytes(b'[instance]\nsave = "\xff"\n')
        (problem,) = problems_of(path)

        assert (problem.key, problem.found) == ("line 2, column 9", "bytes that are not UTF-8")
        assert (problem.file, problem.allowed) == ("my.toml", "TOML 1.0")

    def test_so_have_those_of_a_first_line(self, write: Write) -> None:
        path = write("")
        path.write_bytes(b"\xff")
        (problem,) = problems_of(path)

        assert problem.key == "line 1, column 1"

    @pytest.mark.parametrize(
        ("says", "where", "what"),
        [
            ("Lacks a value (at end of document)", "line 1, column 1", "Lacks a value"),
            ("Told in another way", "(file)", "Told in another way"),
        ],
    )
    def test_an_error_without_a_line_is_told_as_well_as_it_can_be(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, says: str, where: str, what: str
    ) -> None:
        def fail(text: str) -> None:
            raise tomllib.TOMLDecodeError(says)

        path = write("")
        monkeypatch.setattr(tomllib, "loads", fail)
        (problem,) = problems_of(path)

        assert (problem.key, problem.found) == (where, f"a syntax error ({what})")

    def test_a_copy_of_the_shipped_file_is_told_to_leave_the_catalogue_out(self, write: Write) -> None:
        text = resources.files("inference_cache.contract").joinpath("adr_0023.toml").read_text()
        problems = problems_of(write(text))

        assert {p.key for p in problems} == {"name"} | {
            f"clauses.{clause_id}" for clause_id in load().clauses
        }


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size_bytes"),
        [
            ("0", 0),
            ("1b", 1),
            ("1k", 1000),
            ("1K", 1000),
            ("1kb", 1024),
            ("1KB", 1024),
            ("1Ki", 1024),
            ("5m", 5_000_000),
            ("5M", 5_000_000),
            ("1536mb", 1536 * 1024**2),
            ("512Mi", 512 * 1024**2),
            ("6gb", 6 * 1024**3),
            ("2Gi", 2 * 1024**3),
            ("2g", 2 * 1000**3),
            ("2G", 2 * 1000**3),
            ("1T", 1000**4),
            ("1Ti", 1024**4),
        ],
    )
    def test_valkey_and_kubernetes_units_are_read(self, text: str, size_bytes: int) -> None:
        assert parse_size(text) == size_bytes

    @pytest.mark.parametrize(
        "text",
        ["", "gb", "-1gb", "1.5gb", "1 gb", " 1gb", "1gb\n", "1GiB", "2gi", "1tb", "٣gb", "1e3", "0x10"],
    )
    def test_anything_else_is_refused_with_what_to_write(self, text: str) -> None:
        with pytest.raises(UsageError, match="write a whole number and a unit, such as 1536mb or 2Gi"):
            parse_size(text)

    @given(st.integers(0, 2**56), st.sampled_from(["valkey", "kubernetes"]))
    def test_what_is_written_is_read_back_exactly(self, size_bytes: int, units: Any) -> None:
        assert parse_size(format_size(size_bytes, units=units)) == size_bytes

    @given(st.integers(1, 1023), st.integers(0, 4))
    def test_the_largest_exact_unit_is_written(self, number: int, power: int) -> None:
        size_bytes = number * 1024**power
        # The server has no larger unit than gb.
        in_gb = number * 1024 ** max(0, power - 3)
        assert format_size(size_bytes) == f"{in_gb}{['', 'kb', 'mb', 'gb', 'gb'][power]}"
        assert format_size(size_bytes, units="kubernetes") == f"{number}{['', 'Ki', 'Mi', 'Gi', 'Ti'][power]}"

    @given(st.text(max_size=12))
    def test_no_text_breaks_the_parser(self, text: str) -> None:
        with contextlib.suppress(UsageError):
            assert parse_size(text) >= 0

    def test_a_negative_size_cannot_be_written(self) -> None:
        with pytest.raises(UsageError, match=r"^a size cannot be negative: -1$"):
            format_size(-1)
        assert format_size(0) == "0"


class TestPolicies:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_what_may_be_evicted_follows_from_the_policy(self, policy: str) -> None:
        assert may_evict(policy, has_ttl=True) is (policy != "noeviction")
        assert may_evict(policy, has_ttl=False) is policy.startswith("allkeys-")


def doc_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), re.S | re.M)


def doc_rows(heading: str) -> dict[str, list[str]]:
    """The rows of the first table under a heading, by their first cell without its back quotes."""
    section = DOCS.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = re.search(r"^\|.*?(?=\n\n|\Z)", section, re.S | re.M)
    assert table is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


class TestDocs:
    @pytest.mark.parametrize(
        ("heading", "cls"),
        [
            ("`[instance]`", Instance),
            ("`[workloads.<name>]`", Workload),
            ("`[deadlines]`", Deadlines),
            ("`[[waivers]]`", Waiver),
        ],
    )
    def test_every_key_is_documented(self, heading: str, cls: type) -> None:
        assert list(doc_rows(heading)) == list(RULES[cls])

    def test_every_top_level_key_is_documented(self, write: Write) -> None:
        (problem,) = problems_of(write("unknown = 1\n"))

        assert problem.allowed == f"one of {', '.join(doc_rows('How files combine'))}"

    @pytest.mark.parametrize("section", ["instance", "deadlines"])
    def test_defaults_are_those_of_the_shipped_contract(self, section: str) -> None:
        documented = {
            key: tomllib.loads(f"value = {row[2].strip('`')}")["value"]
            for key, row in doc_rows(f"`[{section}]`").items()
        }

        assert documented == shipped_table()[section]

    @pytest.mark.parametrize(
        ("column", "name"), [(2, "vllm_kv"), (3, "embeddings"), (4, "ray"), (5, "sessions")]
    )
    def test_workloads_are_those_of_the_shipped_contract(self, column: int, name: str) -> None:
        table = shipped_table()["workloads"][name]

        for key, row in doc_rows("`[workloads.<name>]`").items():
            if row[column] == "as below":
                assert table[key] in " ".join(DOCS.read_text().split())
            elif row[column]:
                assert tomllib.loads(f"value = {row[column].strip('`')}")["value"] == table[key]
            else:
                assert key not in table

    def test_its_examples_load_and_its_wrong_one_says_what_is_shown(self, write: Write) -> None:
        loaded: dict[str, Contract] = {}
        for block in doc_blocks("toml"):
            name = block.splitlines()[0].removeprefix("# ")
            path = write(block, name=name)
            if name == "wrong.toml":
                with pytest.raises(ContractError) as caught:
                    load(path)
                assert doc_blocks("text") == [f"{caught.value}\n"]
            else:
                loaded[name] = load(path)

        assert set(loaded) == {"my.toml", "team.toml", "accepted.toml"}
        assert loaded["my.toml"].waiver_for("CFG-06") is not None
        assert list(loaded["team.toml"].workloads) == ["vllm_kv", "embeddings", "sessions", "rerank"]
        assert loaded["accepted.toml"].workloads["sessions"].accepted_by
