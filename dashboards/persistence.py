"""Persistence and availability: does it save, does it come back, does it let clients in."""

from __future__ import annotations

from functools import partial

from dashboards._model import Board, Kind, Panel, Query, Row, Step, Unit, ValueText
from dashboards._shared import BAD, GOOD, RATE, RISE, WARN, size
from inference_cache.contract import Contract

__all__ = ["persistence"]

_sign = partial(Panel, kind=Kind.STAT, width=4, height=4)

_GOOD_OR_BAD = (ValueText(value=1, text="ok", color=GOOD), ValueText(value=0, text="FAILED", color=BAD))


def persistence(contract: Contract) -> Board:
    """The dashboard for restarts, failed saves and refused connections."""
    return Board(
        uid="inference-cache-persistence",
        title="Inference cache: Persistence and availability",
        description="Does it save, does it come back with its data, does it let clients in.",
        rows=(
            Row(title="Now", panels=_now()),
            Row(title="Is it there", panels=_there(contract)),
            Row(title="Does it save", panels=_saves(contract)),
            Row(title="Does it let clients in", panels=_clients(contract)),
            Row(title="What Kubernetes says", panels=_kubernetes(contract)),
        ),
    )


def _now() -> tuple[Panel, ...]:
    return (
        _sign(
            title="Server",
            description="Whether redis_exporter gets answers from every chosen server (redis_up).",
            unit=Unit.NUMBER,
            queries=(Query(expr="min(redis_up{@})", legend="up"),),
            texts=(ValueText(value=1, text="up", color=GOOD), ValueText(value=0, text="DOWN", color=BAD)),
        ),
        _sign(
            title="Running for",
            description="Time since the server started; the youngest of the chosen ones.",
            unit=Unit.SECONDS,
            queries=(Query(expr="min(redis_uptime_in_seconds{@})", legend="uptime"),),
        ),
        _sign(
            title="Last snapshot",
            description="Whether the last snapshot (BGSAVE) succeeded. A failed one makes the server "
            "refuse writes (MISCONF) where save points are set.",
            unit=Unit.NUMBER,
            queries=(Query(expr="min(redis_rdb_last_bgsave_status{@})", legend="snapshot"),),
            texts=_GOOD_OR_BAD,
        ),
        _sign(
            title="Last write to the AOF",
            description="Whether the last write to the append-only file succeeded. A full volume shows "
            "here first.",
            unit=Unit.NUMBER,
            queries=(Query(expr="min(redis_aof_last_write_status{@})", legend="AOF"),),
            texts=_GOOD_OR_BAD,
        ),
        _sign(
            title="Last rewrite of the AOF",
            description="Whether the last rewrite of the append-only file succeeded.",
            unit=Unit.NUMBER,
            queries=(Query(expr="min(redis_aof_last_bgrewrite_status{@})", legend="rewrite"),),
            texts=_GOOD_OR_BAD,
        ),
        _sign(
            title="Age of the last snapshot",
            description="Time since the last good snapshot, of the oldest of the chosen servers.",
            unit=Unit.SECONDS,
            queries=(Query(expr="max(time() - redis_rdb_last_save_timestamp_seconds{@})", legend="age"),),
            decimals=0,
        ),
    )


def _there(contract: Contract) -> tuple[Panel, ...]:
    return (
        Panel(
            title="Who gets answers",
            description="1 while redis_exporter and inference-cache's exporter get answers from the "
            "server. One of them alone at 0 is a problem of that exporter.",
            unit=Unit.NUMBER,
            queries=(
                Query(expr="min(redis_up{@})", legend="redis_exporter"),
                Query(expr="min(inference_cache_up{@})", legend="inference-cache exporter"),
            ),
            maximum=1,
            decimals=0,
        ),
        Panel(
            title="Restarts and loading",
            description="Restarts in the last hour, and 1 while a data set is loaded: absent keys mean "
            "nothing yet. The contract wants the first good answer within "
            f"{contract.deadlines.recovery_s:g} s.",
            unit=Unit.COUNT,
            queries=(
                Query(expr="sum(changes(redis_start_time_seconds{@}[1h]))", legend="restarts in 1 h"),
                Query(expr="max(redis_loading_dump_file{@})", legend="loading"),
            ),
        ),
        Panel(
            title="Keys",
            description="Keys in all databases. A fall to zero at a restart is a data set that was not "
            "loaded.",
            unit=Unit.COUNT,
            queries=(Query(expr="sum(redis_db_keys{@})", legend="keys"),),
        ),
    )


def _saves(contract: Contract) -> tuple[Panel, ...]:
    return (
        Panel(
            title="Changes not in a snapshot",
            description="Writes since the last good snapshot: what is lost where only snapshots are kept. "
            f"With the append-only file it is the last {contract.instance.loss_window_s:g} s, as the "
            "contract declares.",
            unit=Unit.COUNT,
            queries=(Query(expr="sum(redis_rdb_changes_since_last_save{@})", legend="changes"),),
        ),
        Panel(
            title="How long saving takes",
            description="Time of the last snapshot and the last AOF rewrite, and how long the last fork "
            "stopped the server for everybody. 0 is none since the start, or less than a second.",
            unit=Unit.SECONDS,
            queries=(
                Query(expr="clamp_min(max(redis_rdb_last_bgsave_duration_sec{@}), 0)", legend="snapshot"),
                Query(expr="clamp_min(max(redis_aof_last_rewrite_duration_sec{@}), 0)", legend="AOF rewrite"),
                Query(expr="max(redis_latest_fork_seconds{@})", legend="fork"),
            ),
        ),
        *(_append_only_file() if contract.instance.appendonly else ()),
        Panel(
            title="Saving now",
            description="1 while a snapshot is taken or the AOF is rewritten. Copy-on-write costs memory "
            "meanwhile.",
            unit=Unit.NUMBER,
            queries=(
                Query(expr="max(redis_rdb_bgsave_in_progress{@})", legend="snapshot"),
                Query(expr="max(redis_aof_rewrite_in_progress{@})", legend="AOF rewrite"),
            ),
            maximum=1,
            decimals=0,
        ),
        Panel(
            title="Failed saves",
            description="1 while the last snapshot, AOF write or AOF rewrite is a failed one.",
            unit=Unit.NUMBER,
            queries=(
                Query(expr="1 - min(redis_rdb_last_bgsave_status{@})", legend="snapshot"),
                Query(expr="1 - min(redis_aof_last_write_status{@})", legend="AOF write"),
                Query(expr="1 - min(redis_aof_last_bgrewrite_status{@})", legend="AOF rewrite"),
            ),
            maximum=1,
            decimals=0,
        ),
    )


def _append_only_file() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Append-only file",
            description="Its size, and its size after the last rewrite: the difference is what a restart "
            "replays.",
            unit=Unit.BYTES,
            queries=(
                Query(expr="sum(redis_aof_current_size_bytes{@})", legend="now"),
                Query(expr="sum(redis_aof_base_size_bytes{@})", legend="after the last rewrite"),
            ),
        ),
        Panel(
            title="Slow disk",
            description="fsyncs of the append-only file that were delayed in the last five minutes, and "
            "writes that wait in its buffer. A slow disk blocks every client after two seconds.",
            unit=Unit.COUNT,
            queries=(
                Query(expr="sum(delta(redis_aof_delayed_fsync{@}[5m]))", legend="delayed fsyncs"),
                Query(expr="sum(redis_aof_pending_bio_fsync{@})", legend="waiting fsyncs"),
            ),
        ),
    )


def _clients(contract: Contract) -> tuple[Panel, ...]:
    declared = sum(workload.connections for workload in contract.workloads.values())
    return (
        Panel(
            title="Connections",
            description=f"Clients connected, under maxclients. The contract declares {declared} for all "
            "workloads.",
            unit=Unit.COUNT,
            queries=(
                Query(expr="sum(redis_connected_clients{@})", legend="connected"),
                Query(expr="sum(redis_blocked_clients{@})", legend="blocked"),
                Query(expr=f"{declared} * count(redis_up{{@}})", legend="declared"),
            ),
            dashed=("declared",),
        ),
        Panel(
            title="Connections of maxclients",
            description="Connected clients over maxclients. At 100 % the server turns everybody away, this "
            "dashboard's exporters included.",
            unit=Unit.RATIO,
            queries=(
                Query(
                    expr="sum(redis_connected_clients{@}) / sum(redis_config_maxclients{@})",
                    legend="of maxclients",
                ),
            ),
            maximum=1,
            steps=RISE,
        ),
        Panel(
            title="Connections made and refused",
            description="Connections accepted a second (a high rate is a client without a pool), and those "
            "refused because of maxclients.",
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(expr=f"sum(rate(redis_connections_received_total{{@}}{RATE}))", legend="accepted"),
                Query(expr=f"sum(rate(redis_rejected_connections_total{{@}}{RATE}))", legend="refused"),
            ),
        ),
    )


def _kubernetes(contract: Contract) -> tuple[Panel, ...]:
    host = contract.instance.address.partition(".")[0]
    pods = f'container=~"{host}.*"'
    return (
        Panel(
            title="Volume",
            description="Used part of the volumes in the namespace, from the kubelet. The contract asks for "
            f"{size(contract.instance.volume_bytes)}; a full one fails saves, and then writes.",
            unit=Unit.RATIO,
            queries=(
                Query(
                    expr="max by (persistentvolumeclaim) (kubelet_volume_stats_used_bytes{@} / "
                    "kubelet_volume_stats_capacity_bytes{@})",
                    legend="{{persistentvolumeclaim}}",
                ),
            ),
            maximum=1,
            steps=(Step(value=None, color=GOOD), Step(value=0.8, color=WARN), Step(value=0.95, color=BAD)),
        ),
        Panel(
            title="Restarts of the container",
            description="Restarts that Kubernetes made in the last hour, from kube-state-metrics.",
            unit=Unit.COUNT,
            queries=(
                Query(
                    expr="sum by (pod) "
                    f"(increase(kube_pod_container_status_restarts_total{{@, {pods}}}[1h]))",
                    legend="{{pod}}",
                ),
            ),
        ),
        Panel(
            title="Killed for memory",
            description="Containers whose last end was an OOM kill, from kube-state-metrics.",
            unit=Unit.COUNT,
            queries=(
                Query(
                    expr="sum by (pod) (kube_pod_container_status_last_terminated_reason"
                    f'{{@, {pods}, reason="OOMKilled"}}) > 0',
                    legend="{{pod}}",
                ),
            ),
            empty_is_health="no container was killed for memory.",
        ),
    )
