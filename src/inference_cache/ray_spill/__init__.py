"""Ray's spilled objects in Valkey: whole, checked, removed with their last reference, and honest about loss.

::

    import ray
    from inference_cache.ray_spill import config

    ray.init(_system_config=config(url="valkey://valkey.ai-ml:6379").system_config)

    # or, at the head of a cluster, with the package installed on every node:
    #   ray start --head $(inference-cache ray-spill config --url valkey://valkey.ai-ml:6379)

A spilled object exists nowhere else. So a server that may evict it is refused when the cluster starts, unless
a contract declares that loss, and an object that is gone all the same gives its reader an
``ObjectLostError``, and never a wait without end.

``docs/ray_spill.md`` has the table of failures, the versions of Ray, and when not to do this.
"""

from inference_cache.ray_spill._config import SpillConfig, config
from inference_cache.ray_spill._janitor import SweepReport
from inference_cache.ray_spill._params import SpillParams
from inference_cache.ray_spill._record import SpilledObject
from inference_cache.ray_spill._storage import SpillStorage, TornRestore

__all__ = [
    "SpillConfig",
    "SpillParams",
    "SpillStorage",
    "SpilledObject",
    "SweepReport",
    "TornRestore",
    "config",
]
