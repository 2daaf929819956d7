"""How much memory for which hit ratio, from a trace or from a sample of a live server.

::

    contract = load()
    form = trace_format(contract, allocator="jemalloc")
    plan = make_plan(read_trace(Path("trace.jsonl.gz"), form), contract)
    plan.shared[""].hit_ratio(1536 * 2**20)      # the four workloads in one memory
    plan.shared["sessions"].memory_for(0.9)      # maxmemory for 90 % of what is reachable

Needs the extra ``plan``. Verified against a replaying Valkey in ``benchmarks/plan.py``.
"""

from inference_cache.errors import MissingExtra

try:
    import numpy as _numpy  # noqa: F401 - named here so that a missing one names its extra
except ImportError as error:
    raise MissingExtra(module="numpy", extra="plan") from error

from inference_cache.plan._curve import Curve
from inference_cache.plan._live import LiveSample, PrefixSample, sample_server
from inference_cache.plan._memory import EMPTY_SERVER_BYTES, Allocator, MemoryModel
from inference_cache.plan._plan import OnlyCopyCost, Plan, make_plan, trace_format
from inference_cache.plan._sampler import Accesses, ReuseSampler
from inference_cache.plan._trace import TraceFormat, read_trace

__all__ = [
    "EMPTY_SERVER_BYTES",
    "Accesses",
    "Allocator",
    "Curve",
    "LiveSample",
    "MemoryModel",
    "OnlyCopyCost",
    "Plan",
    "PrefixSample",
    "ReuseSampler",
    "TraceFormat",
    "make_plan",
    "read_trace",
    "sample_server",
    "trace_format",
]
