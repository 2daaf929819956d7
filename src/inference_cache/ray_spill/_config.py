"""The configuration that makes Ray spill to Valkey."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from inference_cache import ray_hook
from inference_cache.ray_spill._params import SpillParams

__all__ = ["SpillConfig", "config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillConfig:
    """What Ray is to be told, in the two forms that it takes."""

    params: SpillParams
    ray_settings: dict[str, Any]

    @property
    def system_config(self) -> dict[str, Any]:
        """For ``ray.init(_system_config=...)``, at the head of a cluster."""
        spilling = {"type": "valkey", "params": self.params.to_json()}
        return {**self.ray_settings, "object_spilling_config": _compact(spilling)}

    @property
    def ray_start(self) -> str:
        """The argument for ``ray start --head``, one word without blanks; nodes that join get it from the
        head.
        """
        return f"--system-config={_compact(self.system_config)}"


def config(*, url: str, ray_settings: dict[str, Any] | None = None, **params: Any) -> SpillConfig:
    """The configuration for a server at ``url``; ``params`` are the fields of :class:`SpillParams`.

    ``ray_settings`` are other entries of ``_system_config``, such as ``max_io_workers``,
    ``min_spilling_size`` and ``object_spilling_threshold``.

    Raises:
        UsageError: a parameter does not exist or cannot be used.
    """
    ray_hook.install()
    checked = SpillParams.of({"url": url, **params})
    return SpillConfig(params=checked, ray_settings=dict(ray_settings or {}))


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
