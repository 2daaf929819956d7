"""Where the storage meets Ray: the class that Ray calls, and what makes one out of Ray's configuration."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from inference_cache.errors import BlobError, CacheError, InferenceCacheError, MissingExtra, UsageError
from inference_cache.ray_spill._counters import QuietLog
from inference_cache.ray_spill._names import parse_url
from inference_cache.ray_spill._params import SpillParams
from inference_cache.ray_spill._record import SpilledObject
from inference_cache.ray_spill._storage import SpillStorage, TornRestore

try:
    from ray._private import worker as ray_worker
    from ray._private.external_storage import ExternalStorage
    from ray.core.generated.common_pb2 import ErrorType
except ImportError as error:
    raise MissingExtra(module="ray", extra="ray") from error

if TYPE_CHECKING:
    from inference_cache.ray_spill._rebuild import Rebuilder

__all__ = ["RayStorage", "build"]

_logger = logging.getLogger(__name__)
_IO_WORKER: Final = "default_worker.py"
_MOST_RESULTS: Final = 100_000_000
"""Of one task; Ray numbers what a task puts from here on."""
_TORN: Final = 71
"""Exit code (EX_OSERR) of an IO worker that had to give up an object in the middle."""


class RayStorage(ExternalStorage):  # type: ignore[misc]
    """Ray's interface, on top of :class:`SpillStorage`, which may raise nothing but its own errors."""

    def __init__(self, storage: SpillStorage, *, rebuilder: Rebuilder | None = None) -> None:
        super().__init__()
        self.storage = storage
        self._rebuilder = rebuilder
        self._log = QuietLog(_logger)

    def spill_objects(self, object_refs: Sequence[Any], owner_addresses: Sequence[bytes]) -> list[bytes]:
        """URLs of the objects that were stored, in order; fewer than asked for tells Ray to keep the rest."""
        found = self._get_objects_from_store(object_refs) if object_refs else []
        objects = []
        for ref, (buffer, metadata, *_), owner in zip(object_refs, found, owner_addresses, strict=True):
            if buffer is None and not metadata:
                raise ValueError(f"object {ref.hex()} is not in the local object store")
            objects.append(
                SpilledObject(
                    id=ref.hex(),
                    owner=bytes(owner),
                    metadata=bytes(metadata),
                    buffer=memoryview(b"") if buffer is None else memoryview(buffer).cast("B"),
                )
            )
        return self.storage.spill(objects)

    def restore_spilled_objects(
        self, object_refs: Sequence[Any], url_with_offset_list: Sequence[bytes]
    ) -> int:
        """Puts objects back. One that is lost Ray makes again, or it becomes an error object, so that its
        readers are told."""
        total_bytes = 0
        for ref, url in zip(object_refs, url_with_offset_list, strict=True):

            def deliver(owner: bytes, metadata: bytes, size: int, source: Any, ref: Any = ref) -> None:
                self._put_object_to_store(metadata, size, source, ref, owner)

            try:
                total_bytes += self.storage.restore(url, deliver)
            except BlobError:
                if not self._rebuilds(ref, url):
                    self._put_error(ref, ErrorType.Value("OBJECT_LOST"))
            except CacheError:
                self._put_error(ref, ErrorType.Value("OBJECT_FETCH_TIMED_OUT"))
            except TornRestore as error:
                # An object that was begun stays unsealed for as long as this process lives, and whoever waits
                # for it waits as long. Ray starts another process, and asks again.
                _logger.error("this IO worker ends, for it can neither end nor undo an object: %s", error)
                logging.shutdown()
                os._exit(_TORN)
        return total_bytes

    def delete_spilled_objects(self, urls: Sequence[bytes]) -> None:
        """Removes objects; raises nothing for what is not there any more."""
        self.storage.delete(urls)

    def destroy_external_storage(self) -> None:
        """Removes the objects of this node."""
        try:
            self.storage.destroy()
        except CacheError as error:
            _logger.warning("spilled objects of this node stay for the janitor: %s", error)
        finally:
            self.storage.close()
            if self._rebuilder is not None:
                self._rebuilder.close()

    def _rebuilds(self, ref: Any, url: bytes) -> bool:
        """Whether Ray was told that the object is lost, and answers its readers itself."""
        at = parse_url(url)
        found = self.storage.names.object_of(at.key)
        object_id = bytes.fromhex(ref.hex())
        if self._rebuilder is None or not at.owner or found is None or _was_put(object_id):
            return False
        try:
            self._rebuilder.rebuild(
                object_id, owner=at.owner, node=found[0].node, stored=partial(self._lists, url)
            )
        except InferenceCacheError as error:
            self.storage.counters.add("rebuild", "failed")
            self._log.warn(
                "rebuild", f"a lost object is not made again, and its reader gets an error: {error}"
            )
            return False
        self.storage.counters.add("rebuild", "asked")
        return True

    def _lists(self, url: bytes) -> bool:
        try:
            return self.storage.lists(url)
        except CacheError:
            # It cannot be waited for. Nothing is spilled either meanwhile.
            return False

    def _put_error(self, ref: Any, error_type: int) -> None:
        self._put_object_to_store(str(error_type).encode(), 0, _Nothing(), ref, b"")


def _was_put(object_id: bytes) -> bool:
    """Whether it was made by ``ray.put`` and not by a task: ids end with a number, and results come first."""
    return int.from_bytes(object_id[-4:], "little") > _MOST_RESULTS


class _Nothing:
    def readinto(self, target: memoryview) -> int:
        return 0


def build(params: Mapping[str, Any], node: str, session: str = "", **_: object) -> RayStorage:
    """What ``setup_external_storage`` returns for ``type: valkey``.

    The head builds one when it starts, to find out whether it could be used, and refuses to start otherwise.
    IO workers are spared: they would only be started again and again.

    Raises:
        UsageError: wrong parameters, or a Ray that cannot rebuild where that is asked for.
        UnsafeServer: the server may lose spilled objects.
        CacheError: it gives no answer.
    """
    settings = SpillParams.of(params)
    if settings.rebuild:
        # With Ray alone grpc is not there, and in older ones not what it takes: that is told before anything.
        from inference_cache.ray_spill._rebuild import Rebuilder
    storage = _implementation(settings.implementation)(
        settings, session=session or "session", node=node, gcs=_gcs_address()
    )
    if not isinstance(storage, SpillStorage):
        raise UsageError(f"{settings.implementation} is no SpillStorage")
    starting = ray_worker._global_node is None
    if os.path.basename(sys.argv[0]) == _IO_WORKER:
        # Ray has each process collect garbage whenever memory is short, which is when objects are spilled.
        # What was imported is no garbage, and looking through it would be a tenth of an IO worker's time.
        gc.freeze()
    elif starting:
        try:
            storage.check()
        except BaseException:
            storage.close()
            raise
    return RayStorage(storage, rebuilder=Rebuilder(_gcs_address()) if settings.rebuild else None)


def _implementation(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _gcs_address() -> str:
    """The address of the cluster's GCS, which Ray gives each worker as an argument."""
    given = [word.removeprefix("--gcs-address=") for word in sys.argv if word.startswith("--gcs-address=")]
    return given[0] if given else ""
