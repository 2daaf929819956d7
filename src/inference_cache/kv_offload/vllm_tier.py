"""The tier for vLLM 0.32 and 0.33: what their scheduler calls, said to :class:`BlockTier`.

vLLM imports this module itself, by the names in the configuration that ``kv_cache_config`` makes:
:class:`ValkeyOffloadingConnector` is its own offloading connector, which also tells the tier what the engine
runs; :class:`ValkeyTier` is a secondary tier of its tiered offloading.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from inference_cache.errors import MissingExtra
from inference_cache.kv_offload._config import installed_vllm
from inference_cache.kv_offload._identity import BlockId, RunIdentity
from inference_cache.kv_offload._jobs import JobResult as BlockJobResult
from inference_cache.kv_offload._jobs import Transfer
from inference_cache.kv_offload._lookups import Found
from inference_cache.kv_offload._settings import TierSettings
from inference_cache.kv_offload._tier import BlockTier
from inference_cache.kv_offload._vllm_facts import RequestScopes, engine_facts, options_of
from inference_cache.kv_offload._weights import weights_of
from inference_cache.metrics import DURATION_BUCKETS_S

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
    from vllm.platforms import current_platform
    from vllm.v1.kv_offload.base import (
        Locality,
        LookupResult,
        Medium,
        OffloadingCounterMetadata,
        OffloadingEvent,
        OffloadingGaugeMetadata,
        OffloadingHistogramMetadata,
        RequestOffloadingContext,
        get_offload_block_hash,
        get_offload_group_idx,
    )
    from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
except ModuleNotFoundError as error:
    raise MissingExtra(module="vllm", extra="vllm") from error

from inference_cache.kv_offload._vllm_hash_seed import report_seed, share_block_hashes

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext, ScheduleEndContext
    from vllm.v1.kv_offload.tiering.base import TransferJob

__all__ = ["ValkeyOffloadingConnector", "ValkeyTier"]

_logger = logging.getLogger(__name__)

BLOCKS_METRIC = "vllm:kv_offload_valkey_blocks"
LOAD_METRIC = "vllm:kv_offload_valkey_load_block_seconds"
GAUGES = {
    "waiting_bytes": ("vllm:kv_offload_valkey_waiting_bytes", "Bytes that wait to be stored or loaded."),
    "pending_lookups": ("vllm:kv_offload_valkey_pending_lookups", "Blocks looked up without an answer yet."),
    "away": ("vllm:kv_offload_valkey_away", "1 while the server counts as away and is not asked."),
    "writes_paused": ("vllm:kv_offload_valkey_writes_paused", "1 while the server refuses to store."),
}
_FOUND = {Found.HIT: LookupResult.HIT, Found.MISS: LookupResult.MISS, Found.LATER: LookupResult.RETRY}

_facts: ContextVar[Mapping[str, str] | None] = ContextVar("inference_cache_engine_facts", default=None)


class ValkeyOffloadingConnector(OffloadingConnector):
    """vLLM's offloading connector, which also tells its tiers what the engine runs and what requests add."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        token = _facts.set(engine_facts(vllm_config))
        try:
            super().__init__(vllm_config, role, kv_cache_config)
        finally:
            _facts.reset(token)

    def on_new_request(self, request: Any) -> None:
        for tier in getattr(self.scheduler.manager, "secondary_tiers", ()):
            if isinstance(tier, ValkeyTier):
                tier.begin_request(request)
        super().on_new_request(request)


class ValkeyTier(SecondaryTierManager):
    """A secondary tier in Valkey. Raises UsageError at start for settings and models that cannot be used.

    The arguments from ``url`` on are those of the tier's entry in ``secondary_tiers``; see
    :func:`inference_cache.kv_offload.kv_cache_config`.
    """

    medium: ClassVar[Any] = Medium.STORAGE
    cache_hit_source: ClassVar[Any] = CacheHitSource.EXTERNAL_UNSPECIFIED
    core_class: ClassVar[type[BlockTier]] = BlockTier

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        *,
        url: str,
        revision: str | None = None,
        weights_digest: str | None = None,
        adapters: str = "",
        hash_seed: str = "shared",
        after_reset: str = "new_keys",
        enable_kv_events: bool = False,
        locality: str = "REMOTE",
        **settings: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = Locality(locality)
        facts = _facts.get() or {}
        if not facts:
            _logger.warning(
                "the connector is vLLM's own, so the tier knows neither dtype, overrides nor adapters of the "
                "model, and shares its blocks with no other process unless 'adapters' is set: use "
                "'ValkeyOffloadingConnector' from inference_cache.kv_offload.vllm_tier"
            )
        self._scopes = RequestScopes(self.core_class.scope_of, adapters=adapters)
        self._new_keys = after_reset == "new_keys"
        self._share_hashes(hash_seed, facts)
        identity = _identity(
            offloading_spec.config,
            facts,
            value_bytes=self.block_size_bytes,
            weights=weights_of(
                offloading_spec.config.model.name,
                revision=revision or facts.get("revision") or None,
                weights_digest=weights_digest,
            ),
            adapters=adapters,
        )
        self.core = self.core_class(
            url, memory=primary_kv_view, identity=identity, settings=TierSettings(**settings)
        )
        self._jobs: dict[int, list[OffloadKey]] = {}
        self._reported: dict[tuple[str, str], int] = {}
        self._loads_s: list[float] = []
        self._events: list[Any] = []
        self._wants_events = enable_kv_events and offloading_spec.kv_events_config.enable_kv_cache_events
        _logger.info("KV blocks of %s: %r", identity.model, self.core)

    def _share_hashes(self, hash_seed: str, facts: Mapping[str, str]) -> None:
        algorithm = facts.get("hash_algorithm", "sha256")
        shared = hash_seed == "shared" and share_block_hashes()
        if not shared or algorithm.startswith("xxhash"):
            report_seed(fixed_by_default=True, hash_algorithm=algorithm)

    # --- requests

    def begin_request(self, request: Any) -> None:
        """Notes what a request adds to its keys."""
        self._scopes.begin(request)

    def on_new_request(self, req_context: ReqContext) -> Any:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self.core.forget(req_context.req_id)
        self._scopes.end(req_context.req_id)

    def _block(self, key: OffloadKey, req_context: ReqContext) -> BlockId:
        return BlockId(
            group=get_offload_group_idx(key),
            digest=get_offload_block_hash(key),
            scope=self._scopes.of(req_context.req_id),
        )

    # --- the scheduler's calls

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> Any:
        return _FOUND[self.core.lookup(self._block(key, req_context), request=req_context.req_id)]

    def submit_store(self, job_metadata: TransferJob) -> None:
        self.core.submit_store(job_metadata.job_id, self._items(job_metadata))

    def submit_load(self, job_metadata: TransferJob) -> None:
        self.core.submit_load(job_metadata.job_id, self._items(job_metadata))

    def _items(self, job: TransferJob) -> list[tuple[BlockId, int]]:
        keys = self._jobs[job.job_id] = list(job.keys)
        return [
            (self._block(key, job.req_context), int(slot))
            for key, slot in zip(keys, job.chunk_ids, strict=True)
        ]

    def get_finished_jobs(self) -> Iterable[Any]:
        return [self._finished(result) for result in self.core.results()]

    def _finished(self, result: BlockJobResult) -> Any:
        keys = self._jobs.pop(result.number)
        done = tuple(key for key, moved in zip(keys, result.done, strict=True) if moved)
        if result.transfer is Transfer.STORE and done and self._wants_events:
            self._events.append(
                OffloadingEvent(
                    keys=list(done),
                    medium=self.medium,
                    removed=False,
                    locality=self.locality,
                    ownership=self.tier_type,
                )
            )
        loads = result.transfer is Transfer.LOAD
        if loads:
            self._loads_s.append(result.block_s)
        return JobResult(
            job_id=result.number,
            success=result.ok,
            successful_keys=done if loads and not result.ok and done else None,
            transfer_time=result.took_s,
            transfer_bytes=result.moved_bytes,
        )

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self.core.flush()

    def take_events(self) -> Iterable[Any]:
        events, self._events = self._events, []
        return events

    def drain_jobs(self) -> None:
        self.core.drain()
        if self._new_keys:
            # Only a reset of the engine's cache drains, and an update of the weights is what resets it.
            self.core.renew(replace(self.core.identity, epoch=secrets.token_hex(8)))

    def shutdown(self) -> None:
        self.core.close()

    # --- metrics

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        definitions: dict[str, Any] = {
            BLOCKS_METRIC: OffloadingCounterMetadata(
                documentation="Blocks by operation (lookup, load, store) and by how it ended.",
                labelnames=("operation", "reason"),
            ),
            LOAD_METRIC: OffloadingHistogramMetadata(
                documentation="Time of a load from its submission to its end, divided by its blocks.",
                buckets=DURATION_BUCKETS_S,
            ),
        }
        for name, documentation in GAUGES.values():
            definitions[name] = OffloadingGaugeMetadata(documentation=documentation)
        return definitions

    def get_stats(self) -> Any:
        stats = OffloadingConnectorStats()
        counters = self.core.counters
        for labels, count in counters.items():
            new = count - self._reported.get(labels, 0)
            if new and not labels[0].endswith("_bytes"):
                stats.increase_counter(BLOCKS_METRIC, new, labels)
        loads_s, self._loads_s = self._loads_s, []
        for took_s in loads_s:
            stats.observe_histogram(LOAD_METRIC, took_s)
        if stats.is_empty():
            return None
        self._reported = dict(counters)
        for gauge, value in self.core.gauges.items():
            stats.set_gauge(GAUGES[gauge][0], value)
        return stats


def _identity(
    config: Any, facts: Mapping[str, str], *, value_bytes: int, weights: str, adapters: str
) -> RunIdentity:
    """The identity of a run of vLLM; one value holds the parts of all workers, so there is but one rank."""
    parallel = config.parallel
    unknown_adapters = "" if facts or adapters else f"unknown:{secrets.token_hex(8)}"
    version = installed_vllm() or "unknown"
    return RunIdentity(
        model=config.model.name,
        weights=weights,
        kv_dtype=config.model.dtype,
        compute_dtype=facts.get("compute_dtype", "unknown"),
        layout=":".join(
            (
                str(current_platform.device_type),
                str(getattr(config, "kv_cache_layout", None)),
                "canonical" if getattr(config, "canonical_layout", False) else "direct",
                "replicated" if getattr(config, "replicated_layout", False) else "by worker",
            )
        ),
        layout_version=".".join(version.split(".")[:2]),
        block_tokens=config.cache.tokens_per_hash,
        blocks_per_value=config.cache.blocks_per_chunk,
        value_bytes=value_bytes,
        groups=tuple((group.tokens_per_block, tuple(group.layer_names)) for group in config.groups),
        tensor_parallel=parallel.tp_size,
        pipeline_parallel=parallel.pp_size,
        prefill_context_parallel=parallel.pcp_size,
        decode_context_parallel=parallel.dcp_size,
        world_size=parallel.world_size,
        adapters=adapters or unknown_adapters,
        options=options_of(facts),
    )
