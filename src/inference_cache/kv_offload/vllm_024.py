"""The tier for vLLM 0.24, the newest release for torch 2.11: an older form of the same interface.

There, tiers are registered by name and not imported, so the spec is ours, and registers; a lookup answers
with true, false or nothing; a job has blocks instead of chunks, and no part of it can succeed alone; tiers
have neither metrics nor events.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from inference_cache.errors import MissingExtra
from inference_cache.kv_offload._identity import BlockId, RunIdentity
from inference_cache.kv_offload._lookups import Found
from inference_cache.kv_offload._settings import TierSettings
from inference_cache.kv_offload._tier import BlockTier
from inference_cache.kv_offload._vllm_facts import RequestScopes, engine_facts, options_of
from inference_cache.kv_offload._weights import weights_of

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
    from vllm.platforms import current_platform
    from vllm.v1.kv_offload.base import (
        RequestOffloadingContext,
        get_offload_block_hash,
        get_offload_group_idx,
    )
    from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
    from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec
except ModuleNotFoundError as error:
    raise MissingExtra(module="vllm", extra="vllm") from error

from inference_cache.kv_offload._vllm_hash_seed import report_seed

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext
    from vllm.v1.kv_offload.tiering.base import JobMetadata

__all__ = ["ValkeyOffloadingConnector", "ValkeyTier", "ValkeyTieringSpec"]

_TIER = "ValkeyTier"
_FOUND = {Found.HIT: True, Found.MISS: False, Found.LATER: None}


class ValkeyTieringSpec(TieringOffloadingSpec):
    """vLLM's tiering, with this tier among those that it knows by name."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any) -> None:
        if _TIER not in SecondaryTierFactory._registry:
            SecondaryTierFactory.register_tier(_TIER, __name__, _TIER)
        super().__init__(vllm_config, kv_cache_config)


class ValkeyOffloadingConnector(OffloadingConnector):
    """vLLM's offloading connector, which also tells its tiers what requests add."""

    def on_new_request(self, request: Any) -> None:
        assert self.connector_scheduler is not None
        for tier in getattr(self.connector_scheduler.manager, "secondary_tiers", ()):
            if isinstance(tier, ValkeyTier):
                tier.begin_request(request)
        super().on_new_request(request)


class ValkeyTier(SecondaryTierManager):
    """A secondary tier in Valkey. Raises UsageError at start for settings and models that cannot be used."""

    core_class: ClassVar[type[BlockTier]] = BlockTier

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        *,
        url: str,
        revision: str | None = None,
        weights_digest: str | None = None,
        adapters: str = "",
        hash_seed: str = "shared",
        after_reset: str = "new_keys",
        enable_kv_events: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type)
        facts = engine_facts(offloading_spec.vllm_config)
        self._scopes = RequestScopes(self.core_class.scope_of, adapters=adapters)
        self._new_keys = after_reset == "new_keys"
        # The root of the hashes cannot be shared here, whatever ``hash_seed`` says, nor can events be told.
        del hash_seed, enable_kv_events
        report_seed(fixed_by_default=False, hash_algorithm=facts["hash_algorithm"])
        model = offloading_spec.vllm_config.model_config
        weights = weights_of(
            model.model, revision=revision or facts["revision"] or None, weights_digest=weights_digest
        )
        assert primary_kv_view.strides is not None
        identity = _identity(
            offloading_spec,
            facts,
            value_bytes=primary_kv_view.strides[0],
            weights=weights,
            adapters=adapters,
        )
        self.core = self.core_class(
            url, memory=primary_kv_view, identity=identity, settings=TierSettings(**settings)
        )

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

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> bool | None:
        return _FOUND[self.core.lookup(self._block(key, req_context), request=req_context.req_id)]

    def submit_store(self, job_metadata: JobMetadata) -> None:
        self.core.submit_store(job_metadata.job_id, self._items(job_metadata))

    def submit_load(self, job_metadata: JobMetadata) -> None:
        self.core.submit_load(job_metadata.job_id, self._items(job_metadata))

    def _items(self, job: JobMetadata) -> list[tuple[BlockId, int]]:
        return [
            (self._block(key, job.req_context), int(slot))
            for key, slot in zip(job.keys, job.block_ids, strict=True)
        ]

    def get_finished_jobs(self) -> Iterable[Any]:
        return [JobResult(job_id=result.number, success=result.ok) for result in self.core.results()]

    def on_schedule_end(self) -> None:
        self.core.flush()

    def drain_jobs(self) -> None:
        self.core.drain()
        if self._new_keys:
            # Only a reset of the engine's cache drains, and an update of the weights is what resets it.
            self.core.renew(replace(self.core.identity, epoch=secrets.token_hex(8)))

    def shutdown(self) -> None:
        self.core.close()


def _identity(
    spec: Any, facts: dict[str, str], *, value_bytes: int, weights: str, adapters: str
) -> RunIdentity:
    parallel = spec.vllm_config.parallel_config
    model = spec.vllm_config.model_config
    cache_dtype = spec.vllm_config.cache_config.cache_dtype
    return RunIdentity(
        model=model.model,
        weights=weights,
        kv_dtype=facts["compute_dtype"] if cache_dtype == "auto" else str(cache_dtype),
        compute_dtype=facts["compute_dtype"],
        layout=f"{current_platform.device_type}:direct:by worker",
        layout_version="0.24",
        block_tokens=spec.hash_block_size,
        blocks_per_value=spec.block_size_factor,
        value_bytes=value_bytes,
        groups=tuple(
            (tokens, tuple(group.layer_names))
            for tokens, group in zip(spec.gpu_block_size, spec.kv_cache_config.kv_cache_groups, strict=True)
        ),
        tensor_parallel=parallel.tensor_parallel_size,
        pipeline_parallel=parallel.pipeline_parallel_size,
        prefill_context_parallel=parallel.prefill_context_parallel_size,
        decode_context_parallel=parallel.decode_context_parallel_size,
        world_size=parallel.world_size,
        adapters=adapters,
        options=options_of(facts),
    )
