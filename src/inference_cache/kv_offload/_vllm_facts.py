"""What vLLM knows and does not tell its tiers: what the engine runs, and what a request adds."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inference_cache.kv_offload._weights import digest_of_folder

__all__ = ["RequestScopes", "engine_facts", "options_of"]

_logger = logging.getLogger(__name__)


def engine_facts(vllm_config: Any) -> dict[str, str]:
    """What decides the bytes of blocks and is not in the configuration that vLLM hands to a tier."""
    model = vllm_config.model_config
    described = model.hf_config.to_dict()
    # Where the weights lie says nothing about them.
    described.pop("_name_or_path", None)
    facts = {
        "compute_dtype": str(model.dtype).removeprefix("torch."),
        "revision": str(model.revision or ""),
        "quantization": str(model.quantization or ""),
        "hash_algorithm": str(vllm_config.cache_config.prefix_caching_hash_algo),
        "attention": str(getattr(getattr(vllm_config, "attention_config", None), "backend", "") or ""),
        "kv_scales": str(getattr(vllm_config.cache_config, "calculate_kv_scales", "")),
        "lora": "yes" if vllm_config.lora_config is not None else "",
        # With everything that the command line overrides in it.
        "model_config": json.dumps(described, sort_keys=True, default=str),
    }
    if "dummy" in str(getattr(vllm_config.load_config, "load_format", "")):
        facts["random_weights"] = str(model.seed)
    return facts


def options_of(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The facts that have no field of their own in a run's identity."""
    return tuple(
        sorted((name, fact) for name, fact in facts.items() if name not in ("compute_dtype", "revision"))
    )


class RequestScopes:
    """What the requests that are alive add to the keys of their blocks."""

    def __init__(self, scope_of: Callable[..., bytes], *, adapters: str) -> None:
        self._scope_of = scope_of
        self._adapters = adapters
        self._scopes: dict[str, bytes] = {}
        self._digests: dict[str, str] = {}

    def begin(self, request: Any) -> None:
        """Notes which adapter a request has, not just its name, and its cache salt."""
        lora = getattr(request, "lora_request", None)
        adapter = self._adapter(lora.lora_name, lora.lora_path) if lora is not None else ""
        scope = self._scope_of(adapter=adapter, salt=getattr(request, "cache_salt", None) or "")
        if scope:
            self._scopes[request.request_id] = scope

    def of(self, request_id: str) -> bytes:
        """What the request adds, nothing for one that has neither adapter nor salt."""
        return self._scopes.get(request_id, b"")

    def end(self, request_id: str) -> None:
        """That request is over."""
        self._scopes.pop(request_id, None)

    def _adapter(self, name: str, path: str) -> str:
        known = self._digests.get(path)
        if known is None:
            if Path(path).is_dir():
                known = digest_of_folder(Path(path))
            elif self._adapters:
                known = f"declared:{self._adapters}:{path}"
            else:
                known = f"unknown:{secrets.token_hex(8)}"
                _logger.error(
                    "the adapter %r at %r is no folder, so its blocks are not shared with other processes: "
                    "write 'adapters' into the KV cache configuration",
                    name,
                    path,
                )
            self._digests[path] = known
        return f"{name}:{known}"
