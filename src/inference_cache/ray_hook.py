"""The one line that plugs into Ray: ``type: "valkey"`` becomes a kind of object spilling that Ray knows.

Ray has no way to register a storage, so its factory is wrapped when Ray is imported. A ``.pth`` file beside
this package imports this module at the start of every interpreter of the environment, because the processes
that spill are started by Ray, and run no code of the user's before they need it. Hence the rules here: import
nothing but ``sys``, touch nothing but one function of one module of Ray's, and leave every other type of
storage to Ray. ``python -S`` and ``-I -S`` skip ``.pth`` files; ``inference-cache ray-spill doctor`` tells.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# Annotations would need imports, and this is run at the start of every interpreter.
from __future__ import annotations

import sys

__all__ = ["TARGET", "installed", "patch"]

TARGET = "ray._private.external_storage"
"""The module of Ray whose ``setup_external_storage(config, node_id, session_name)`` is wrapped."""

_MARK = "_inference_cache"


class _Finder:
    """Finds the one module as everybody else would, and has it patched once it has been executed."""

    def find_spec(self, name, path=None, target=None):
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)

    def create_module(self, spec):
        return self._real.create_module(spec)

    def exec_module(self, module):
        self._real.exec_module(module)
        patch(module)


def patch(module):
    """Wraps ``module.setup_external_storage``, once; a module without that function is left as it is."""
    original = getattr(module, "setup_external_storage", None)
    if original is None or hasattr(original, _MARK):
        return

    def setup_external_storage(config, *arguments, **named):
        if not config or config.get("type") != "valkey":
            return original(config, *arguments, **named)
        from inference_cache.ray_spill import _plug

        module._external_storage = _plug.build(config.get("params") or {}, *arguments, **named)
        return module._external_storage

    setup_external_storage.__doc__ = original.__doc__
    setattr(setup_external_storage, _MARK, original)
    module.setup_external_storage = setup_external_storage


def installed() -> bool:
    """Whether this process will use us, or does: Ray's module is patched, or will be when it is imported."""
    module = sys.modules.get(TARGET)
    if module is not None:
        return hasattr(getattr(module, "setup_external_storage", None), _MARK)
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def install() -> None:
    """Sees to it that :func:`installed`."""
    module = sys.modules.get(TARGET)
    if module is not None:
        patch(module)
    elif not installed():
        sys.meta_path.insert(0, _Finder())


install()
