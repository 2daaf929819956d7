"""``python -m inference_cache``."""

from inference_cache.cli import main

raise SystemExit(main())
