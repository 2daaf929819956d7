# mypy: allow-untyped-calls
# valkey-py is marked as typed, but most methods that are called and overridden here have no annotations.
"""The client of a cluster: the map of its slots, and commands that go to several nodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NoReturn

import valkey.exceptions as vke
from valkey.cluster import ClusterNode, ValkeyCluster
from valkey.crc import key_slot

from inference_cache.connection._client import Client, Key, Pipeline, PubSub, Value, closed_unless_whole
from inference_cache.connection._connections import Pool
from inference_cache.connection._deadlines import deadline, remaining_s
from inference_cache.connection._errors import call, each_translated, name_of
from inference_cache.connection._plan import Plan
from inference_cache.connection._retry import READS
from inference_cache.connection._url import host_port
from inference_cache.connection._wire import Encoder
from inference_cache.errors import UsageError


class _Cluster(ValkeyCluster):
    """valkey-py's map of a cluster, with its way of sending replaced.

    The stock one sends a command again when its reply was lost, sleeps without looking at a deadline, and
    forgets nodes that were away until it knows none.
    """

    def __init__(self, plan: Plan) -> None:
        self._seeds = [ClusterNode(host, port) for host, port in plan.endpoint.hosts]
        self.stale = False
        """Whether the map must be drawn anew before the next command."""
        first = host_port(*plan.endpoint.hosts[0])
        super().__init__(
            # Only with a URL does valkey-py use the pool class it is given.
            url=f"valkey://{first}",
            startup_nodes=self._seeds[1:],
            cluster_error_retry_attempts=0,
            connection_pool_class=partial(Pool, plan=plan),
        )

    def refresh(self) -> None:
        """Asks the known nodes for the map of slots, the ones that failed lately last."""
        manager = self.nodes_manager
        known = {node.name: node for node in [*manager.nodes_cache.values(), *reversed(self._seeds)]}
        manager.startup_nodes = dict(sorted(known.items(), key=lambda item: item[0] in self._failed))
        manager.initialize()
        self._failed.clear()
        self.stale = False

    @property
    def _failed(self) -> set[str]:
        failed: set[str] = self.__dict__.setdefault("_failed_names", set())
        return failed

    def _execute_command(self, target_node: Any, *args: Any, **options: Any) -> Any:
        options.pop("keys", None)
        node, asking = target_node, False
        for _ in range(self.ValkeyClusterRequestTTL):
            try:
                return self._send(node, args, options, asking=asking)
            except vke.MovedError as error:
                self.stale = True
                node, asking = self._node_at(error), False
            except vke.AskError as error:
                node, asking = self._node_at(error), True
            except vke.TryAgainError:
                left_s = remaining_s()
                if left_s is not None and left_s < _TRY_AGAIN_PAUSE_S:
                    raise
                time.sleep(_TRY_AGAIN_PAUSE_S)
        raise vke.ClusterError(f"redirected {self.ValkeyClusterRequestTTL} times")

    def _send(self, node: Any, args: Sequence[Any], options: Mapping[str, Any], *, asking: bool) -> Any:
        client = self.get_valkey_connection(node)
        try:
            connection = client.connection_pool.get_connection(args[0])
            try:
                with closed_unless_whole(connection):
                    if asking:
                        connection.send_command("ASKING")
                        connection.read_response()
                    connection.send_command(*args)
                    response = client.parse_response(connection, args[0], **options)
            finally:
                client.connection_pool.release(connection)
        except (vke.ConnectionError, vke.TimeoutError, vke.ClusterDownError):
            self._failed.add(node.name)
            self.stale = True
            raise
        callback = self.cluster_response_callbacks.get(args[0])
        return callback(response, **options) if callback is not None else response

    def _node_at(self, redirect: vke.AskError) -> Any:
        node = self.get_node(host=redirect.host, port=redirect.port)
        return node if node is not None else ClusterNode(redirect.host, redirect.port)


_TRY_AGAIN_PAUSE_S: Final = 0.02


class _Topology:
    """The map of a cluster, drawn at first use and again when it turned out to be wrong."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._cluster: _Cluster | None = None

    def current(self) -> _Cluster:
        left_s = remaining_s()
        if not self._lock.acquire(timeout=-1 if left_s is None else max(left_s, 0)):
            raise vke.TimeoutError("another thread is still asking for the map of the cluster")
        try:
            if self._cluster is None:
                self._cluster = _Cluster(self._plan)
            elif self._cluster.stale:
                self._cluster.refresh()
            return self._cluster
        finally:
            self._lock.release()

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.disconnect_connection_pools()


class ClusterClient(Client):
    """A :class:`Client` for a cluster; made by :func:`connect` from a cluster URL.

    ``mget``, ``mset``, ``delete``, ``unlink``, ``exists`` and ``touch`` take keys of any slots: they go out
    slot by slot, so not atomically. ``scan_iter`` walks all primaries. A transaction needs keys of one slot
    (give them a common hash tag), and WATCH is not available. Commands without a key go to one node, or to
    all primaries, as in valkey-py, and then give a dict by node. Redirects are followed within the deadline.
    """

    def __init__(
        self, *, plan: Plan, deadline_s: float | None = None, topology: _Topology | None = None
    ) -> None:
        host, port = plan.endpoint.hosts[0]
        super().__init__(connection_pool=Pool(plan=plan, host=host, port=port), deadline_s=deadline_s)
        self._owns_topology = topology is None
        self._topology = topology or _Topology(plan)

    def close(self) -> None:
        if self._owns_topology:
            self._topology.close()

    def with_deadline(self, deadline_s: float) -> ClusterClient:
        return ClusterClient(plan=self._plan, deadline_s=deadline_s, topology=self._topology)

    def client(self) -> NoReturn:
        raise UsageError("a cluster client has no single connection; connect to one node with valkey://")

    def execute_command(self, *args: Any, **options: Any) -> Any:
        command = name_of(args[0])
        with call(self._plan, command, self.deadline_s):
            try:
                return self._topology.current().execute_command(*args, **options)
            except vke.ConnectionError as error:
                if type(error) is not vke.ConnectionError or hasattr(error, "reply"):
                    raise
                if command not in READS or not self._plan.retry.reads:
                    raise
                return self._topology.current().execute_command(*args, **options)

    def ask_primaries(self, *args: Any) -> dict[str, Any]:
        """The same command to each primary, one by one within one deadline; replies by host and port."""
        with call(self._plan, name_of(args[0]), self.deadline_s):
            nodes = self._topology.current().get_primaries()
            return {node.name: self.execute_command(*args, target_nodes=node) for node in nodes}

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> ClusterPipeline:
        return ClusterPipeline(self, transaction=transaction)

    def pubsub(self, **kwargs: Any) -> PubSub:
        """Subscriptions through one node: a cluster passes messages on to all of them."""
        with call(self._plan, "SUBSCRIBE", self.deadline_s):
            node = self._topology.current().get_default_node()
            pool = self._topology.current().get_valkey_connection(node).connection_pool
        return PubSub(pool, deadline_s=self.deadline_s, **kwargs)

    def mget(self, keys: Key | Iterable[Key], *args: Key | float) -> list[bytes | None]:
        names = [*([keys] if isinstance(keys, (bytes, str, memoryview)) else keys), *args]
        values: dict[bytes, bytes | None] = {}
        with deadline(self.deadline_s):
            for group in self._by_slot(names):
                values.update(zip(group, self.execute_command("MGET", *group), strict=True))
        return [values[self._encoded(name)] for name in names]

    def mset(self, mapping: Mapping[Any, Value]) -> bool:
        pairs = {self._encoded(name): value for name, value in mapping.items()}
        with deadline(self.deadline_s):
            for group in self._by_slot(pairs):
                self.execute_command("MSET", *(part for name in group for part in (name, pairs[name])))
        return True

    def delete(self, *names: Key) -> int:
        return self._sum_by_slot("DEL", names)

    def unlink(self, *names: Key) -> int:
        return self._sum_by_slot("UNLINK", names)

    def exists(self, *names: Key) -> int:
        return self._sum_by_slot("EXISTS", names)

    def touch(self, *args: Key) -> int:
        return self._sum_by_slot("TOUCH", args)

    def scan_iter(
        self,
        match: Key | None = None,
        count: int | None = None,
        _type: str | None = None,
        **kwargs: Any,
    ) -> Iterator[bytes]:
        options: list[Any] = []
        for option, value in (("MATCH", match), ("COUNT", count), ("TYPE", _type)):
            options += [] if value is None else [option, value]
        with call(self._plan, "SCAN", self.deadline_s):
            nodes = self._topology.current().get_primaries()
        for node in nodes:
            cursor = 0
            while True:
                cursors, keys = self.execute_command("SCAN", cursor, *options, target_nodes=node)
                yield from keys
                cursor = cursors[node.name]
                if cursor == 0:
                    break

    def _encoded(self, name: Key | float) -> bytes:
        return bytes(Encoder("utf-8", "strict", False).encode(name))

    def _by_slot(self, names: Iterable[Key | float]) -> list[list[bytes]]:
        groups: dict[int, list[bytes]] = {}
        for name in dict.fromkeys(map(self._encoded, names)):
            groups.setdefault(key_slot(name), []).append(name)
        return list(groups.values())

    def _sum_by_slot(self, command: str, names: Sequence[Key]) -> int:
        groups: dict[int, list[bytes]] = {}
        for name in map(self._encoded, names):
            groups.setdefault(key_slot(name), []).append(name)
        with deadline(self.deadline_s):
            return sum(self.execute_command(command, *group) for group in groups.values())


class ClusterPipeline(Pipeline):
    """Commands grouped by node and sent group by group; a transaction needs keys of one slot."""

    def __init__(self, client: ClusterClient, *, transaction: bool) -> None:
        self._client = client
        self._atomic = transaction
        super().__init__(client, transaction=transaction)

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = list(self.command_stack)
        what = f"a pipeline of {len(commands)} commands"
        try:
            with call(self._plan, what, self._deadline_s):
                for script in self.scripts:
                    script.sha = self._client.script_load(script.script)
                run = self._run_transaction if self._atomic or self.explicit_transaction else self._run_groups
                return each_translated(run(commands, raise_on_error), self._plan, "a command of a pipeline")
        finally:
            self.reset()

    def immediate_execute_command(self, *args: Any, **options: Any) -> NoReturn:
        raise UsageError("WATCH is not available on a cluster; use a script, whose keys share a slot")

    def _run_groups(self, commands: Sequence[Any], raise_on_error: bool) -> list[Any]:
        cluster = self._client._topology.current()
        groups: dict[str, tuple[Any, list[int]]] = {}
        for index, (args, _) in enumerate(commands):
            nodes = cluster._determine_nodes(*args)
            if len(nodes) != 1:
                raise UsageError(
                    f"{name_of(args[0])} concerns {len(nodes)} nodes; send it outside of a pipeline"
                )
            groups.setdefault(nodes[0].name, (nodes[0], []))[1].append(index)
        replies: dict[int, Any] = {}
        for node, indices in groups.values():
            group = [commands[index] for index in indices]
            replies.update(zip(indices, self._on(cluster, node, self._execute_pipeline, group), strict=True))
        for index, reply in replies.items():
            if isinstance(reply, (vke.AskError, vke.TryAgainError)):
                # The node that answered this did not carry the command out.
                args, options = commands[index]
                try:
                    replies[index] = cluster.execute_command(*args, **options)
                except vke.ResponseError as error:
                    replies[index] = error
        ordered = [replies[index] for index in range(len(commands))]
        if raise_on_error:
            self.raise_first_error(commands, ordered)
        return ordered

    def _run_transaction(self, commands: Sequence[Any], raise_on_error: bool) -> list[Any]:
        if not commands:
            return []
        cluster = self._client._topology.current()
        slots = {cluster.determine_slot(*args) for args, _ in commands}
        if len(slots) != 1:
            raise UsageError(
                "the keys of a transaction on a cluster must share a slot: give them a common hash tag, "
                "or use pipeline(transaction=False)"
            )
        node = cluster.nodes_manager.get_node_from_slot(slots.pop())
        try:
            return self._on(cluster, node, self._execute_transaction, commands, raise_on_error)
        except vke.MovedError as error:
            # The slot has moved away: the server refused to queue the commands, so none was carried out.
            cluster.stale = True
            return self._on(
                cluster, cluster._node_at(error), self._execute_transaction, commands, raise_on_error
            )

    def _on(
        self, cluster: _Cluster, node: Any, run: Callable[..., Any], commands: Any, raises: bool = False
    ) -> list[Any]:
        pool = cluster.get_valkey_connection(node).connection_pool
        connection = pool.get_connection("PIPELINE")
        self.connection = connection
        try:
            replies: list[Any] = run(connection, commands, raises)
            return replies
        except (vke.ConnectionError, vke.TimeoutError):
            cluster.stale = True
            raise
        finally:
            self.connection = None
            pool.release(connection)
