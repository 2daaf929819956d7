"""Exporters, rules and dashboards that watch wrongly."""

from __future__ import annotations

from mutants.model import GoodSystem, Mutant, Way

__all__ = ["GOOD_SYSTEMS", "MUTANTS"]

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="O01",
        title="INFO tells of the past",
        way=Way.PROXY,
        clause="OBS-02",
        faults=({"fault": "InfoFrozen"},),
        incident="a caching proxy before the server: flat lines on every dashboard through an outage",
    ),
    Mutant(
        id="O02",
        title="DBSIZE is constant",
        way=Way.PROXY,
        clause="OBS-05",
        faults=({"fault": "DbsizeConstant"},),
    ),
    Mutant(
        id="O04",
        title="the exporter watches another instance",
        way=Way.ADAPTER,
        clause="OBS-01",
        implementation={"exporter": "mutants.observability:AnotherInstance"},
        incident="a copied Deployment that still has the old address: green while the cache is down",
    ),
    Mutant(
        id="O05",
        title="a metric has been renamed",
        way=Way.ADAPTER,
        clause="OBS-01",
        implementation={"exporter": "mutants.observability:Renamed"},
        incident="an exporter's new major version: alerts on absent series never fire again",
    ),
    Mutant(
        id="O20",
        title="keys are attributed by their first word",
        way=Way.ADAPTER,
        clause="OBS-05",
        implementation={"exporter": "mutants.observability:FirstColon"},
    ),
    Mutant(
        id="O21",
        title="the exporter touches the keys that it looks at",
        way=Way.ADAPTER,
        clause="OBS-05",
        implementation={"exporter": "mutants.observability:TouchesKeys"},
        incident="redis_exporter's -check-keys: what it reads survives LRU, and the hit ratio looks better",
    ),
    Mutant(
        id="O22",
        title="the exporter serves old numbers while the server is gone",
        way=Way.ADAPTER,
        clause="OBS-02",
        implementation={"exporter": "mutants.observability:NeverDown"},
    ),
    Mutant(
        id="O23",
        title="the exporter states a twentieth of its error",
        way=Way.ADAPTER,
        clause="OBS-05",
        implementation={"exporter": "mutants.observability:SureOfItself"},
    ),
)

GOOD_SYSTEMS: tuple[GoodSystem, ...] = ()
