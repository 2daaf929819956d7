"""What all dashboards share: variables, annotations, and links from each to the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dashboards._model import Board
from dashboards._modernize import Json
from dashboards._queries import ENGINE, bind
from dashboards._shared import ALERTS

__all__ = ["links", "marks", "variables"]

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_ALL = {"selected": True, "text": "All", "value": "$__all"}


def variables(core: Any, board: Board) -> list[Any]:
    """The choices at the top of a dashboard: data source, namespace, job, instance and prefix.

    A series without a namespace (nothing but Kubernetes adds one) belongs to all namespaces.
    """
    up = '{__name__=~"redis_up|inference_cache_up", namespace=~"$namespace"%s}'
    found = [
        core.Template(
            name="datasource",
            label="Data source",
            type="datasource",
            query="prometheus",
            default=None,
        ),
        _query(
            core, "namespace", "Namespace", up.replace(', namespace=~"$namespace"', "") % "", all_value=".*"
        ),
        _query(core, "job", "Job", up % ""),
        _query(core, "instance", "Instance", up % ', job=~"$job"'),
        _query(core, "prefix", "Prefix", bind("inference_cache_prefix_bytes{@}", with_prefix=False)),
    ]
    if board.engine:
        found.append(
            _query(core, ENGINE, "Engine job", f'{board.engine}{{namespace=~"$namespace"}}', label="job")
        )
    return found


def _query(
    core: Any, name: str, title: str, selector: str, *, all_value: str = ".+", label: str | None = None
) -> Any:
    return core.Template(
        name=name,
        label=title,
        dataSource=_DATASOURCE,
        query={
            "qryType": 1,
            "query": f"label_values({selector}, {label or name})",
            "refId": "PrometheusVariableQueryEditor-VariableQuery",
        },
        includeAll=True,
        multi=True,
        allValue=all_value,
        refresh=core.REFRESH_ON_TIME_RANGE_CHANGE,
        default="$__all",
    )


def marks() -> list[Json]:
    """What happened when: alerts that fired, restarts, saves that failed.

    ``titleFormat`` and ``tagKeys`` are what Grafana's Prometheus data source reads from an annotation.
    """
    return [
        _annotation(
            "Alerts",
            "red",
            f'{ALERTS.removesuffix("}")}, severity!="info"}}',
            title="{{alertname}}",
            tags="alertname,severity,prefix",
        ),
        _annotation(
            "Restarts",
            "orange",
            bind("changes(redis_start_time_seconds{@}[$__rate_interval]) > 0"),
            title="restarted: {{instance}}",
            tags="instance",
        ),
        _annotation(
            "Failed saves",
            "purple",
            bind("(1 - redis_rdb_last_bgsave_status{@} > 0) or (1 - redis_aof_last_write_status{@} > 0)"),
            title="saving fails: {{instance}}",
            tags="instance",
        ),
    ]


def _annotation(name: str, color: str, expr: str, *, title: str, tags: str) -> Json:
    return {
        "datasource": _DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "name": name,
        "target": {"expr": expr, "refId": "Anno", "interval": "", "datasource": _DATASOURCE},
        "titleFormat": title,
        "tagKeys": tags,
    }


def links(core: Any, board: Board, boards: Sequence[Board]) -> list[Any]:
    """To each other dashboard, with the same choices and the same time."""
    return [
        core.DashboardLink(
            type="link",
            title=other.title.removeprefix("Inference cache: "),
            uri=f"/d/{other.uid}",
            icon="dashboard",
            tooltip=other.description,
            includeVars=True,
            keepTime=True,
        )
        for other in boards
        if other.uid != board.uid
    ]
