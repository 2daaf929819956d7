"""Live servers that break the contract, and suites that judge them wrongly."""

from __future__ import annotations

from mutants.model import GoodSystem, Mutant, Way

__all__ = ["GOOD_SYSTEMS", "MUTANTS"]

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="X02",
        title="a plain-text port beside TLS",
        way=Way.LIFECYCLE,
        clause="SEC-02",
        contract="[instance]\ntls = true\n",
        hook="plain_port_beside",
        incident="tls-port added and `port 6379` left in: half of the clients never noticed",
    ),
    Mutant(
        id="X04",
        title="workloads may run FLUSHALL, CONFIG, DEBUG and KEYS",
        way=Way.LIFECYCLE,
        clause="SEC-03",
        hook="acl_for_every_command",
        incident="`+@all` in the ACL of an application: its test suite called FLUSHALL on the wrong host",
    ),
    Mutant(
        id="M08",
        title="manifests: a memory limit equal to maxmemory",
        way=Way.CONTRACT,
        clause="CFG-01",
        manifests="limit_equals_maxmemory",
        incident="a fork for BGSAVE under writes took the pod over its limit: exit code 137, each night",
    ),
    Mutant(
        id="U60",
        title="manifests: no memory limit",
        way=Way.CONTRACT,
        clause="CFG-01",
        manifests="no_memory_limit",
        incident="limits removed to stop OOM kills: then the node's other pods were killed instead",
    ),
    Mutant(
        id="U61",
        title="manifests: the data folder lies beside the volume's mount",
        way=Way.CONTRACT,
        clause="CFG-03",
        manifests="data_beside_the_mount",
        incident="a chart changed its mount path; `dir` stayed, and every rollout began empty",
    ),
    Mutant(
        id="U62",
        title="manifests: no auth and no NetworkPolicy",
        way=Way.CONTRACT,
        clause="SEC-01",
        manifests="no_network_policy",
    ),
    Mutant(
        id="X08",
        title="manifests: the community chart's default values",
        way=Way.CONTRACT,
        clause="CFG-01",
        manifests="chart_defaults",
        incident="no maxmemory, no volume, no resources: what `helm install` gives without values",
    ),
    Mutant(
        id="G01",
        title="the suite selects nothing and exits 0",
        way=Way.SUITE,
        clause="exit codes",
        suite_checks=("nothing_selected",),
        patch="nothing_is_conformant",
        incident="a renamed marker: CI ran no test for weeks, and was green",
    ),
    Mutant(
        id="G02",
        title="everything skipped counts as passed",
        way=Way.SUITE,
        clause="exit codes",
        suite_checks=("everything_skipped",),
        patch="skipped_is_passed",
        incident="a missing package skipped the whole suite, which reported success",
    ),
    Mutant(
        id="G04",
        title="the report names a version that was not observed",
        way=Way.SUITE,
        clause="CFG-04",
        suite_checks=("version_as_observed",),
        patch="version_is_guessed",
        incident="redis_exporter says 7.2.4 of every Valkey, for it reads redis_version",
    ),
    Mutant(
        id="G05",
        title="the clean-up leaves keys behind",
        way=Way.SUITE,
        clause="live safety",
        suite_checks=("live_server_left_as_found",),
        patch="keys_are_left",
    ),
    Mutant(
        id="G06",
        title="the clean-up deletes by pattern",
        way=Way.SUITE,
        clause="live safety",
        suite_checks=("live_server_left_as_found",),
        patch="keys_are_removed_by_pattern",
        incident="a test's tear-down ran DEL on KEYS test:*, which were also the names of a tenant's keys",
    ),
    Mutant(
        id="G07",
        title="a secret in the report",
        way=Way.ADAPTER,
        clause="SEC-04",
        implementation={"reports": "mutants.reports:write_unredacted"},
        incident="a connection URL, password and all, in the artefacts of a public CI job",
    ),
)

GOOD_SYSTEMS: tuple[GoodSystem, ...] = (
    GoodSystem(
        id="G-MANIFEST",
        title="what the shipped manifests would start",
        manifests="unchanged",
        groups=("CFG", "ISO", "MEM", "SEC"),
    ),
    GoodSystem(
        id="G-SUITE",
        title="the suite itself, as it is",
        suite_checks=(
            "nothing_selected",
            "everything_skipped",
            "version_as_observed",
            "live_server_left_as_found",
        ),
    ),
    GoodSystem(
        id="G-TLS", title="behind TLS, on no plain-text port", contract="[instance]\ntls = true\n", workers=4
    ),
    GoodSystem(id="G-CLUSTER", title="live: a cluster of three", environment="live_cluster"),
    GoodSystem(id="G-REPLICA", title="live: a primary with a replica", environment="live_replication"),
    GoodSystem(id="G-SENTINEL", title="live: found by sentinels", environment="live_sentinels"),
    GoodSystem(
        id="G-LEAST",
        title="live: a user without CONFIG and INFO",
        environment="live_least_privilege",
    ),
    GoodSystem(
        id="G-FULL-LIVE",
        title="live: full before the run begins",
        environment="live_full",
        contract='[instance]\nmaxmemory = "64mb"\nmemory_limit = "96mb"\nmemory_request = "64mb"\n',
    ),
    GoodSystem(id="G-OWNERS", title="live: its owners write during the run", environment="live_with_owners"),
    GoodSystem(id="G-SOCKET", title="live: on a unix socket only", environment="live_socket"),
    GoodSystem(
        id="G-TLS-LIVE",
        title="live: TLS with client certificates",
        environment="live_tls",
        contract="[instance]\ntls = true\n",
    ),
)
