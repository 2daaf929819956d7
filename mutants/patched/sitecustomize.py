"""Found by every Python process of a run whose suite is to be wrong: changes the suite before it starts."""

import os

if name := os.environ.get("INFERENCE_CACHE_SUITE_PATCH"):
    from mutants.suite_patches import PATCHES

    PATCHES[name]()
