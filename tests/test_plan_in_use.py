"""The planner as it is used: traces from files, the command, a live server, and a replay on a real Valkey."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.targets.embedded import EmbeddedServer, resolve_executable, shipped_executables
from inference_cache import cli
from inference_cache.contract import load
from inference_cache.errors import UsageError
from inference_cache.gate.outcomes import ExitCode
from inference_cache.plan import MemoryModel, make_plan, read_trace, sample_server, trace_format

CONTRACT = load()
FORM = trace_format(CONTRACT, allocator="libc")
GOOD = {"time": 1.5, "key": "emb:sha256:ab", "size": 4096, "workload": "embeddings"}


def line(**changes: Any) -> str:
    return json.dumps({name: value for name, value in {**GOOD, **changes}.items() if value is not ...})


def written(folder: Path, *lines: str, name: str = "trace.jsonl") -> Path:
    path = folder / name
    text = "".join(f"{text}\n" for text in lines)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return path


class TestTrace:
    @pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
    def test_reads_plain_and_gzipped_lines(self, tmp_path: Path, name: str) -> None:
        path = written(tmp_path, line(), line(key="session:user:1", workload="sessions"), line(), name=name)
        [run] = read_trace(path, FORM)
        assert run.workloads.tolist() == [1, 3, 1]
        assert run.times_s.tolist() == [1.5, 1.5, 1.5]
        assert run.ids[0] == run.ids[2] != run.ids[1]

    def test_the_prefix_tells_the_workload_where_none_is_named(self, tmp_path: Path) -> None:
        keys = ("vllm:kv:x", "emb:x", "ray:x", "session:x")
        path = written(tmp_path, *(line(key=key, workload=...) for key in keys))
        [run] = read_trace(path, FORM)
        assert [FORM.names[code] for code in run.workloads] == ["vllm_kv", "embeddings", "ray", "sessions"]

    def test_blank_lines_other_fields_and_text_beyond_ascii_are_fine(self, tmp_path: Path) -> None:
        path = written(tmp_path, "", line(op="get"), "  ", line(key="emb:ü😀"))
        [run] = read_trace(path, FORM)
        assert len(run) == 2

    def test_quick_and_careful_reading_agree(self, tmp_path: Path) -> None:
        rows = [line(key=f"emb:{n}", size=n * 100, time=n) for n in range(50)]
        [quick] = read_trace(written(tmp_path, *rows), FORM)
        [careful] = read_trace(written(tmp_path, "", *rows, name="other.jsonl"), FORM)
        assert np.array_equal(quick.ids, careful.ids)
        assert np.array_equal(quick.stored_bytes, careful.stored_bytes)

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            ("{oops", "no JSON"),
            ("[1, 2]", "no object; write one object a line"),
            (line(size=..., time=...), "'time' and 'size' missing"),
            (line(size=-1), "'size' is -1; write the bytes of the value as a whole number"),
            (line(size=1.5), "'size' is 1.5"),
            (line(size=True), "'size' is true"),
            (line(size="4096"), "'size' is \"4096\""),
            (line(key=""), "'key' is \"\""),
            (line(key=7), "'key' is 7; write the key as text"),
            (line(time="noon"), "'time' is \"noon\"; write seconds as a number"),
            (line(time=None), "'time' is null"),
            (line(workload="embedings"), "write one of vllm_kv, embeddings, ray, sessions"),
            (line(workload=["x"]), "write one of vllm_kv"),
            (line(key="mlcache:1", workload=...), "starts with none of vllm:kv:, emb:, ray:, session:"),
        ],
    )
    def test_a_bad_line_is_told_with_its_number_and_what_to_write(
        self, tmp_path: Path, bad: str, says: str
    ) -> None:
        path = written(tmp_path, line(), line(), bad, line())
        with pytest.raises(UsageError) as caught:
            list(read_trace(path, FORM))
        assert "trace.jsonl:3: " in str(caught.value)
        assert says in str(caught.value)
        assert "a good line: {" in str(caught.value)

    def test_line_numbers_go_on_through_a_long_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("inference_cache.plan._trace._READ_BYTES", 500)
        path = written(tmp_path, *[line()] * 40, "oops", *[line()] * 40)
        with pytest.raises(UsageError, match=r"trace.jsonl:41: no JSON"):
            list(read_trace(path, FORM))

    def test_only_the_first_few_mistakes_are_listed(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            list(read_trace(written(tmp_path, *["oops"] * 30), FORM))
        assert str(caught.value).count("no JSON") == 5

    def test_a_file_without_requests_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="holds no request; write one JSON object a line"):
            list(read_trace(written(tmp_path, ""), FORM))

    def test_a_missing_or_torn_file_is_a_usage_error(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read"):
            list(read_trace(tmp_path / "nowhere.jsonl", FORM))
        torn = tmp_path / "torn.gz"
        torn.write_bytes(gzip.compress(line().encode() * 1000)[:-20])
        with pytest.raises(UsageError, match="cannot be read"):
            list(read_trace(torn, FORM))


@pytest.fixture(scope="class")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    kinds = [("vllm:kv:", 50, 100_000), ("emb:", 500, 4000), ("ray:", 5, 300_000), ("session:", 200, 2000)]
    rows = []
    for number in range(4000):
        prefix, keys, size = kinds[int(rng.integers(4))]
        key = f"{prefix}{int(rng.integers(keys))}"
        rows.append(line(time=number / 10, key=key, size=size, workload=...))
    return written(tmp_path_factory.mktemp("trace"), *rows, name="four.jsonl.gz")


class TestCommand:
    def test_tells_hits_memory_and_the_price_of_evictability(
        self, trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "made" / "here"
        arguments = ["plan", "--trace", str(trace_file), "--out", str(out), "--maxmemory", "4mb", "1536mb"]
        assert cli.main(arguments) == ExitCode.CONFORMANT
        text = capsys.readouterr().out
        assert "4,000 requests over 6 min 40 s" in text
        for words in (
            "hit ratio at maxmemory",
            "maxmemory for",
            "sessions reads",
            "find the only copy evicted",
        ):
            assert words in text
        numbers = json.loads((out / "plan.json").read_text("utf-8"))
        assert set(numbers["workloads"]) == {"all", "vllm_kv", "embeddings", "ray", "sessions"}
        ratios = numbers["workloads"]["all"]["hit_ratio_at_maxmemory_bytes"]
        assert 0 < ratios[str(4 << 20)] < ratios[str(1536 << 20)]
        assert ratios[str(1536 << 20)] == numbers["workloads"]["all"]["reachable_hit_ratio"]
        assert [cost["maxmemory_bytes"] for cost in numbers["only_copies"]] == [4 << 20, 1536 << 20]

    def test_the_page_asks_nobody_for_anything(self, trace_file: Path, tmp_path: Path) -> None:
        cli.main(["plan", "--trace", str(trace_file), "--out", str(tmp_path)])
        page = (tmp_path / "plan.html").read_text("utf-8")
        assert page.count("<svg") == 2
        assert "default-src 'none'" in page
        for words in ("<script", "src=", "href=", "url(", "@import", "http://", "https://"):
            assert words not in page, words

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--maxmemory", "2.5gb"], "is not a size"),
            (["--keys", "12"], "--keys 12: write 256 or more"),
        ],
    )
    def test_wrong_arguments_are_usage(
        self,
        trace_file: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        says: str,
    ) -> None:
        assert cli.main(["plan", "--trace", str(trace_file), *arguments]) == ExitCode.USAGE
        assert says in capsys.readouterr().err

    def test_a_trace_or_a_url_is_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["plan"])
        assert "--trace --url" in capsys.readouterr().err


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    settings = {"save": "", "appendonly": "no", "maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}
    with EmbeddedServer(resolve_executable(None), settings) as started:
        yield started


class TestMemory:
    @pytest.mark.parametrize("make", sorted(shipped_executables()))
    @pytest.mark.parametrize("ttl_s", [None, 3600])
    def test_the_model_is_what_memory_usage_says(self, make: str, ttl_s: int | None) -> None:
        """Within 40 bytes; from 32 KiB on, where the query buffer becomes the value, within a page too."""
        model = MemoryModel(allocator="libc")
        with (
            EmbeddedServer(resolve_executable(make), {"save": "", "appendonly": "no"}) as server,
            server.connect() as client,
        ):
            for key_bytes in (12, 44, 90):
                for size in (100, 1000, 4096, 12_288, 65_536, 1 << 20, 4 << 20):
                    key = b"emb:".ljust(key_bytes, b"k")
                    client.set(key, b"x" * size, ex=ttl_s)
                    told = client.memory_usage(key)
                    assert told is not None
                    [modelled] = model.stored_bytes(
                        np.array([size]), np.array([key_bytes]), np.array([ttl_s is not None])
                    )
                    # MEMORY USAGE leaves out the tables' shares.
                    tables = 13 * (1 + (ttl_s is not None))
                    assert modelled - tables == pytest.approx(told, abs=40 if size < 32_768 else 4200), (
                        key_bytes,
                        size,
                    )


class TestLiveServer:
    def fill(self, server: EmbeddedServer, count: int = 2000) -> list[bytes]:
        keys = [b"emb:%d" % n if n % 4 else b"session:%d" % n for n in range(count)] + [b"stray"]
        with server.connect() as client:
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.set(key, b"x" * 1000)
            pipe.execute()
        return keys

    def test_finds_whose_keys_there_are(self, server: EmbeddedServer) -> None:
        self.fill(server)
        with server.connect() as client:
            seen = sample_server(client, CONTRACT, keys=100_000, watch_s=0.0)
        assert seen.sampled == seen.keys == 2001
        assert (seen.of("embeddings").keys, seen.of("sessions").keys, seen.of("").keys) == (1500, 500, 1)
        assert seen.of("embeddings").error_bytes == 0.0
        assert 1500 * 1000 < seen.of("embeddings").stored_bytes < 1500 * 1200
        assert seen.working_set_bytes("embeddings", 3600) == seen.of("embeddings").stored_bytes

    def test_a_sample_is_right_within_its_error(self, server: EmbeddedServer) -> None:
        self.fill(server, 8000)
        with server.connect() as client:
            seen = sample_server(client, CONTRACT, keys=1000, watch_s=0.0)
        assert 1000 <= seen.sampled < 2000
        part = seen.of("sessions")
        assert abs(part.keys - 2000) < 2000 * 0.25
        assert 0 < part.error_bytes < 0.25 * part.stored_bytes

    def test_leaves_the_recency_of_every_key_alone(self, server: EmbeddedServer) -> None:
        keys = self.fill(server, 200)
        end = time.monotonic() + 30
        with server.connect() as client:
            while int(client.execute_command("OBJECT IDLETIME", keys[0])) < 2:
                assert time.monotonic() < end, "waited 30 s for the keys to grow 2 s old"
                time.sleep(0.05)
            sample_server(client, CONTRACT, keys=100_000, watch_s=0.0)
            assert min(int(client.execute_command("OBJECT IDLETIME", key)) for key in keys) >= 2

    def test_its_own_looks_are_not_taken_for_traffic(self, server: EmbeddedServer) -> None:
        """OBJECT IDLETIME counts as a hit, although it touches nothing."""
        self.fill(server)
        with server.connect() as client:
            seen = sample_server(client, CONTRACT, keys=100_000, watch_s=0.2)
        assert (seen.requests_per_s, seen.observed_hit_ratio, seen.curve()) == (0.0, None, [])

    def test_a_policy_that_keeps_no_age_is_refused(self, server: EmbeddedServer) -> None:
        with server.connect() as client:
            client.config_set("maxmemory-policy", "allkeys-lfu")
            with pytest.raises(UsageError, match=r"allkeys-lfu: it keeps no age of keys; plan from a trace"):
                sample_server(client, CONTRACT, watch_s=0.0)

    def test_a_user_who_may_not_look_is_told_what_to_grant(self, server: EmbeddedServer) -> None:
        self.fill(server, 10)
        with server.connect() as client:
            client.execute_command("ACL SETUSER", "default", "-memory")
            with pytest.raises(UsageError, match=r"grant \+scan \+object\|idletime \+memory\|usage \+info"):
                sample_server(client, CONTRACT, watch_s=0.0)

    def test_the_command_says_what_it_cannot_see(
        self, server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.fill(server)
        assert cli.main(["plan", "--url", server.url]) == ExitCode.CONFORMANT
        text = capsys.readouterr().out
        assert "2,001 of 2,001 keys sampled" in text
        assert "(no declared prefix)" in text
        assert "No prediction: nobody read while the server was watched." in text


def test_a_real_valkey_has_the_predicted_hit_ratio(server: EmbeddedServer) -> None:
    """A small trace, replayed over enough ticks of the LRU clock: within 2 points.

    The full comparison, at five sizes and on two versions, is benchmarks/plan.py.
    """
    weight = np.arange(1, 3001) ** -0.9
    numbers = np.searchsorted(
        np.cumsum(weight) / weight.sum(), np.random.default_rng(4).random(15_000)
    ).tolist()
    maxmemory, size, ticks = 4 << 20, 4000, 25
    keys = [b"emb:sha256:%08d" % number for number in numbers]
    with server.connect(deadline_s=30) as client:
        client.config_set("maxmemory", maxmemory)
        empty = int(client.info("memory")["used_memory_startup"])
        run = FORM.accesses([0.0] * len(keys), keys, [size] * len(keys), [1] * len(keys))
        predicted = make_plan([run], CONTRACT, allocator="libc", empty_bytes=empty).shared[""]
        hits, began = 0, time.monotonic()
        for at, key in enumerate(keys):
            if at % 50 == 0:
                time.sleep(max(0.0, began + ticks * at / len(keys) - time.monotonic()))
            if client.get(key) is None:
                client.set(key, b"x" * size, ex=3600)
            else:
                hits += 1
    assert predicted.hit_ratio(maxmemory) < predicted.reachable - 0.1
    assert hits / len(keys) == pytest.approx(predicted.hit_ratio(maxmemory), abs=0.02)
