"""Tiers that offload vLLM's KV blocks wrongly."""

from __future__ import annotations

from mutants.model import GoodSystem, Mutant, Way

__all__ = ["GOOD_SYSTEMS", "MUTANTS"]


def _tier(id: str, clause: str, adapter: str, title: str, incident: str = "", *, spec: str = "") -> Mutant:
    return Mutant(
        id=id,
        title=title,
        way=Way.ADAPTER,
        clause=clause,
        implementation={"kv_offload": f"mutants.kv_offload:{adapter}"},
        incident=incident,
        spec=spec,
    )


def _config(id: str, adapter: str, title: str) -> Mutant:
    return Mutant(
        id=id,
        title=title,
        way=Way.ADAPTER,
        clause="KV-12",
        implementation={"kv_config": f"mutants.kv_offload:{adapter}"},
    )


MUTANTS: tuple[Mutant, ...] = (
    _tier(
        "K10",
        "KV-04",
        "KeysByHash",
        "keys of blocks are made with hash()",
        "caches that no second process ever hit, since each process seeds hash() anew",
    ),
    _tier(
        "K11a",
        "KV-03",
        "WithoutWeights",
        "the key knows the model's name, not its weights",
        "a fine-tuned model served from the same path answered from the old one's blocks",
    ),
    _tier("K11b", "KV-03", "WithoutDtype", "the key leaves out the dtype"),
    _tier("K11c", "KV-03", "WithoutLayout", "the key leaves out the layout of the cache"),
    _tier("K11d", "KV-03", "WithoutRank", "the key leaves out the rank"),
    _tier(
        "K11e",
        "KV-03",
        "WithoutAdapter",
        "the key leaves out the LoRA adapter",
        "adapters reloaded under their old name and path, with other weights",
    ),
    _tier("K11f", "KV-03", "WithoutSalt", "the key leaves out the cache salt"),
    _tier(
        "K13",
        "KV-08",
        "TwoKeys",
        "a block and the note that it is there are two keys, and one is evicted",
        "LMCache's metadata beside its bytes: each expires and is evicted alone",
    ),
    _tier("K17", "KV-05", "MaximumOverRanks", "ranks use the longest prefix that any of them found"),
    _tier("K18", "KV-10", "NoDeadline", "the tier has no deadline"),
    _tier("K19", "KV-10", "FailsWithTheServer", "the engine fails when the server is down"),
    _tier("U80", "KV-05", "CountsHitsAnywhere", "hits behind a hole count for the prefix"),
    _tier(
        "U81",
        "KV-06",
        "ClosesRanks",
        "blocks that were found move up over those that were not",
        "replies of a batch counted instead of matched, once a key was missing",
    ),
    _tier(
        "U82",
        "KV-06",
        "AsksForEver",
        "a block that could not be loaded is found again by the same request",
        "vLLM 49176: a failed promotion was looked up and submitted again without end",
    ),
    _tier("U83", "KV-06", "LosesDrainedJobs", "jobs that wait while the tier drains have no result"),
    _tier("U84", "KV-07", "AcceptsDamage", "a damaged block is taken for a good one"),
    _tier("U85", "KV-07", "KeepsDamage", "a damaged block is never replaced"),
    _tier("U86", "KV-09", "DropsTheLastInSilence", "the last block of a store is not written"),
    _tier("U87", "KV-09", "NoTtl", "blocks have no time to live"),
    _tier("U88", "KV-09", "WritesAnew", "blocks that are there are written again"),
    _tier("U89", "KV-03", "ShortPrefix", "blocks lie under vllm: instead of vllm:kv:"),
    _tier("U90", "KV-10", "NeverComesBack", "the tier stays away after the first outage"),
    _config("U91", "config_without_ttl", "the time to live is not passed on"),
    _config("U92", "config_that_accepts_anything", "a misspelt key is ignored"),
    Mutant(
        id="U94",
        title="live: an offloader of somebody else's writes blocks that never expire",
        way=Way.ENVIRONMENT,
        clause="KV-09",
        environment="live_offloader_without_ttl",
        incident="LMCache 0.5.6 writes without a time to live unless it is told one",
    ),
    Mutant(
        id="U95",
        title="live: an offloader of somebody else's writes blocks outside of every prefix",
        way=Way.ENVIRONMENT,
        clause="ISO-06",
        environment="live_offloader_outside",
        incident="LMCache 0.5.6 begins its keys with the model's name unless it is told a prefix",
    ),
    _tier("U93", "KV-02", "SwapsRows", "two blocks of a load change places; needs a vLLM to be seen"),
    _tier(
        "U100",
        "KV-02",
        "FirstWorkersPart",
        "of a block that two workers share, only the first one's part is loaded",
        spec="several_kinds",
    ),
    _tier(
        "U101",
        "KV-02",
        "HalvesOfLatents",
        "half a block of latent attention is taken for its values, and is lost",
        spec="latent",
    ),
)

GOOD_SYSTEMS: tuple[GoodSystem, ...] = ()
