"""Has Ray make a lost object again, by running its task again.

Ray does so when the node dies that had the only copy, and never when a storage has lost it. So it is told of
such a death, in three steps, none of them an interface that Ray documents:

1. The object's owner is told that the copy lies on a node that never was.
2. The raylet that has spilled the object is told to forget it. Else it would take what is made again for
   spilled still, and not keep it: pushed out of the object store, that copy would be waited for without end.
   It has the old value removed, and the third step waits for that, or the removal would hit the new one.
3. All who listen to the GCS are told that this node has died. Nobody but the owner has anything there.

The owner then looks for another copy, or runs the task again, or stores an error in the object's place: when
no task has made it, or when it may not be made again.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from inference_cache.errors import InferenceCacheError, MissingExtra, UsageError
from inference_cache.ray_spill._counters import QuietLog

try:
    import grpc
except ImportError as error:
    raise MissingExtra(module="grpc", extra="ray") from error

try:
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import (
        common_pb2,
        core_worker_pb2,
        core_worker_pb2_grpc,
        gcs_pb2,
        gcs_service_pb2,
        gcs_service_pb2_grpc,
        node_manager_pb2,
        node_manager_pb2_grpc,
        pubsub_pb2,
    )

    _FREE: Final = node_manager_pb2.FreeLocalObjectsRequest
    _CHANNEL: Final = pubsub_pb2.GCS_NODE_ADDRESS_AND_LIVENESS_CHANNEL
    _GCS: Final = gcs_service_pb2_grpc.ControlPlanePubSubGcsServiceStub
except (ImportError, AttributeError) as error:
    raise UsageError(
        "rebuild needs calls that came with Ray 2.60, and this Ray does not have them: leave rebuild out, or "
        f"install another Ray ({error})"
    ) from error

__all__ = ["NotRebuilt", "Rebuilder"]

_logger = logging.getLogger(__name__)
_CALL_S: Final = 5.0
_FORGOTTEN_S: Final = 5.0
"""Raylets remove what was freed once a second."""
_POLL_S: Final = 0.05
_ID_BYTES: Final = 28


class NotRebuilt(InferenceCacheError):
    """Ray could not be told that an object is lost; says which step failed."""


class Rebuilder:
    """Tells the cluster whose GCS is at ``gcs`` (``host:port``). Threads may share it."""

    def __init__(self, gcs: str) -> None:
        self._gcs = gcs
        self._forgotten: queue.SimpleQueue[tuple[bytes, Callable[[], bool]] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._log = QuietLog(_logger)
        # It waits while IO workers go on, one of which has to remove the old value.
        threading.Thread(target=self._announce_all, name="ray-spill-rebuild", daemon=True).start()

    def rebuild(self, object_id: bytes, *, owner: bytes, node: str, stored: Callable[[], bool]) -> None:
        """Has an object made again; returns when all that waits is for its old value to be removed.

        ``owner`` is the owner's address as Ray gave it, ``node`` the one that has spilled it, in hex;
        ``stored`` says whether the old value still stands among that node's objects.

        Raises:
            NotRebuilt: the owner or the raylet gave no answer. Whoever waits for the object has to be told.
        """
        nobody = secrets.token_bytes(_ID_BYTES)
        address = common_pb2.Address()
        address.ParseFromString(owner)
        place = core_worker_pb2.ObjectSpilledLocationUpdate(spilled_to_local_storage=True)
        update = core_worker_pb2.ObjectLocationUpdate(object_id=object_id, spilled_location_update=place)
        request = core_worker_pb2.UpdateObjectLocationBatchRequest(
            intended_worker_id=address.worker_id, node_id=nobody, object_location_updates=[update]
        )
        owners = core_worker_pb2_grpc.CoreWorkerServiceStub
        _call(f"{address.ip_address}:{address.port}", owners, "UpdateObjectLocationBatch", request)
        if raylet := self._raylet(node):
            raylets = node_manager_pb2_grpc.NodeManagerServiceStub
            _call(raylet, raylets, "FreeLocalObjects", _FREE(object_ids=[object_id]))
        self._forgotten.put((nobody, stored))

    def _raylet(self, node: str) -> str:
        """Address of a node's raylet, empty when it is dead."""
        request = gcs_service_pb2.GetAllNodeAddressAndLivenessRequest(
            node_ids=[bytes.fromhex(node)], state_filter=gcs_pb2.GcsNodeInfo.ALIVE
        )
        nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub
        for found in _call(self._gcs, nodes, "GetAllNodeAddressAndLiveness", request).node_info_list:
            return f"{found.node_manager_address}:{found.node_manager_port}"
        return ""

    def close(self) -> None:
        """Ends the thread. The cluster is over, and nobody waits for an object any more."""
        self._ended.set()
        self._forgotten.put(None)

    def _announce_all(self) -> None:
        while not self._ended.is_set():
            if (told := self._forgotten.get()) is not None:
                self._announce(*told)

    def _announce(self, nobody: bytes, stored: Callable[[], bool]) -> None:
        ends_at_s = time.monotonic() + _FORGOTTEN_S
        while stored() and time.monotonic() < ends_at_s:
            time.sleep(_POLL_S)
        death = gcs_pb2.GcsNodeAddressAndLiveness(
            node_id=nobody,
            state=gcs_pb2.GcsNodeInfo.DEAD,
            death_info=common_pb2.NodeDeathInfo(
                reason=common_pb2.NodeDeathInfo.UNEXPECTED_TERMINATION,
                reason_message="stands for a spilled object that was lost",
            ),
        )
        message = pubsub_pb2.PubMessage(
            channel_type=_CHANNEL, key_id=nobody, node_address_and_liveness_message=death
        )
        request = gcs_service_pb2.GcsPublishRequest(pub_messages=[message])
        while not self._ended.is_set():
            try:
                _call(self._gcs, _GCS, "GcsPublish", request)
                return
            except NotRebuilt as error:
                # The owner waits for this word, and nobody else can give it. A cluster without a GCS ends.
                self._log.warn("rebuild", f"a lost object is made again later: {error}")
                self._ended.wait(1.0)


def _call(address: str, service: Callable[[Any], Any], method: str, request: Any) -> Any:
    channel = init_grpc_channel(address)
    try:
        return getattr(service(channel), method)(request, timeout=_CALL_S)
    except grpc.RpcError as error:
        raise NotRebuilt(f"{address} did not take {method}: {error.details()}") from error
    finally:
        channel.close()
