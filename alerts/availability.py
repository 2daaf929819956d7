"""Availability: the server answers, its clients get in, and somebody would notice if not."""

from __future__ import annotations

from alerts.appearing import appeared
from alerts.model import Alert, Case, Context, Eval, Kind, Severity, Target, number
from alerts.series import COUNT, RATE, flat, level_cases, missing, ramp, then

__all__ = ["alerts"]

_DASHBOARD = "persistence"


def alerts(context: Context) -> tuple[Alert, ...]:
    """The group, in the order of urgency."""
    return (
        _down(context),
        _target_gone(context),
        _exporter_gone(context),
        _writes_refused(context),
        _connections_exhausted(context),
        _connections_near_limit(context),
        _connections_over_contract(context),
        _connection_churn(context),
        _loading_too_long(context),
        _restarted(context),
        _restart_loop(context),
    )


def _down(context: Context) -> Alert:
    description = (
        "The exporter runs and gets no answer from the server: it is gone, does not accept connections, or "
        "has no connection left to give."
    )
    return Alert(
        name="InferenceCacheDown",
        group="availability",
        severity=Severity.CRITICAL,
        expr=f"{context.redis('redis_up')} == 0",
        for_s=60,
        summary="The server does not answer",
        description=description,
        threshold=(
            f"a minute, of which recovery_s = {number(context.contract.deadlines.recovery_s)} s are expected"
        ),
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=60,
            bad={"redis_up": 0},
            good={"redis_up": 1},
            reads=description,
            bad_is="no answer for a minute",
            good_is="the server answers",
            resolved_by="the server answers again",
        ),
        inhibits=("InferenceCacheBudgetBurn.*",),
    )


def _gone(context: Context, *, name: str, job: str, severity: Severity, who: str, what: str) -> Alert:
    description = f"Nothing is scraped as job {job}: {what}"
    up = f'up{{job="{job}"}}'
    scraped = f'up{{job="{job}", instance="{who}:1"}}'
    there = {"instance": f"{who}:1", "job": job}
    return Alert(
        name=name,
        group="availability",
        severity=severity,
        # up is 0 where a target is known and does not answer, and absent where it is not known any more.
        expr=f"{up} == 0\nor absent({up})",
        for_s=180,
        summary=f"Nobody is watching: {who} is gone",
        description=description,
        threshold="three minutes, several scrapes",
        dashboard="overview",
        cases=(
            Case(
                kind=Kind.FIRES,
                what="the target does not answer",
                inputs={scraped: then(flat(1, 10), flat(0, 30))},
                evals=(
                    Eval(at="12m"),
                    Eval(at="13m", reads=description, labels=there, target=Target.NONE),
                ),
            ),
            Case(
                kind=Kind.FIRES,
                what="the target is not in the configuration any more",
                inputs={scraped: then(flat(1, 10), "stale", missing(30))},
                evals=(
                    Eval(at="12m"),
                    Eval(at="14m", reads=description, labels={"job": job}, target=Target.NONE),
                ),
            ),
            Case(
                kind=Kind.QUIET,
                what="it misses scrapes for two minutes",
                inputs={scraped: then(flat(1, 10), flat(0, 3), flat(1, 30))},
                evals=(Eval(at="12m"), Eval(at="13m"), Eval(at="30m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="it is scraped again",
                inputs={scraped: then(flat(0, 10), flat(1, 30))},
                evals=(
                    Eval(at="9m", reads=description, labels=there, target=Target.NONE),
                    Eval(at="10m"),
                ),
            ),
        ),
    )


def _target_gone(context: Context) -> Alert:
    return _gone(
        context,
        name="InferenceCacheTargetGone",
        job=context.settings.redis_job,
        severity=Severity.CRITICAL,
        who="redis_exporter",
        what="whatever happens to the server, no other alert about it can fire.",
    )


def _exporter_gone(context: Context) -> Alert:
    return _gone(
        context,
        name="InferenceCacheExporterGone",
        job=context.settings.exporter_job,
        severity=Severity.WARNING,
        who="exporter",
        what="contention between prefixes and the last verdict of the gate go unseen.",
    )


def _writes_refused(context: Context) -> Alert:
    errors = context.redis("redis_errors_total", 'err=~"OOM|MISCONF|READONLY|NOREPLICAS"')
    window = context.window(300)
    description = (
        f"{COUNT} commands were refused with {{{{ $labels.err }}}} in 5 minutes. Reads work; what is not "
        "stored is computed again, or lost where it was the only copy."
    )

    def reads(count: float, err: str) -> str:
        return description.replace(COUNT, f"{count:.0f}").replace("{{ $labels.err }}", err)

    oom, misconf = 'redis_errors_total{err="OOM"}', 'redis_errors_total{err="MISCONF"}'
    up = flat(1, 60)
    return Alert(
        name="InferenceCacheWritesRefused",
        group="availability",
        severity=Severity.CRITICAL,
        expr=appeared(
            errors,
            window=window,
            kept="namespace, job, instance, err",
            watched=f"{context.redis('redis_up')} offset {window} == 1",
        ),
        for_s=60,
        summary="The server refuses writes",
        description=description,
        threshold="any: under allkeys-lru with room for a save no write is ever refused"
        if context.contract.instance.maxmemory_policy.startswith("allkeys-")
        else "any",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="one burst of the first errors ever",
                inputs={oom: then(missing(20), flat(7, 40)), "redis_up": up},
                evals=(
                    Eval(at="20m"),
                    Eval(at="21m", reads=reads(7, "OOM"), labels={"err": "OOM"}),
                    Eval(at="30m"),
                ),
            ),
            Case(
                kind=Kind.FIRES,
                what="more errors of a kind that there was before",
                inputs={misconf: then(flat(5, 20), ramp(65, 60, 40)), "redis_up": up},
                evals=(
                    Eval(at="19m"),
                    Eval(at="30m", reads=reads(300, "MISCONF"), labels={"err": "MISCONF"}),
                ),
            ),
            Case(
                kind=Kind.QUIET,
                what="errors of long ago, mistakes of clients, and errors first seen with the target itself",
                inputs={
                    oom: flat(7, 60),
                    'redis_errors_total{err="WRONGTYPE"}': ramp(0, 60, 60),
                    "redis_up": up,
                },
                evals=(Eval(at="1m"), Eval(at="4m"), Eval(at="30m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="five minutes without an error",
                inputs={misconf: then(flat(5, 20), ramp(65, 60, 11), flat(665, 30)), "redis_up": up},
                evals=(
                    Eval(at="30m", reads=reads(300, "MISCONF"), labels={"err": "MISCONF"}),
                    Eval(at="36m"),
                ),
            ),
        ),
    )


def _connections_exhausted(context: Context) -> Alert:
    description = (
        f"{COUNT} connections were refused in 15 minutes, since maxclients was reached. Their workloads "
        "run without a cache; exporters are refused like everybody else."
    )
    reads = description.replace(COUNT, "27")
    return Alert(
        name="InferenceCacheConnectionsExhausted",
        group="availability",
        severity=Severity.CRITICAL,
        # The exporter is refused too while it lasts, so the window must be longer than a short exhaustion.
        expr=f"increase({context.redis('redis_rejected_connections_total')}[{context.window(900)}]) > 0",
        for_s=0,
        summary="The server refuses connections",
        description=description,
        threshold="any refused connection",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="the exporter gets in again after two minutes and sees 27 refused",
                inputs={
                    "redis_rejected_connections_total": then(flat(0, 20), missing(2), flat(27, 40)),
                },
                evals=(Eval(at="21m"), Eval(at="22m", reads=reads)),
            ),
            Case(
                kind=Kind.QUIET,
                what="connections refused an hour ago",
                inputs={"redis_rejected_connections_total": then(flat(0, 2), flat(27, 90))},
                evals=(Eval(at="60m"), Eval(at="90m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="a quarter of an hour without a refusal",
                inputs={
                    "redis_rejected_connections_total": then(flat(0, 20), missing(2), flat(27, 40)),
                },
                evals=(Eval(at="22m", reads=reads), Eval(at="37m")),
            ),
        ),
        inhibits=("InferenceCacheConnectionsNearLimit", "InferenceCacheConnectionsOverContract"),
    )


def _connections_near_limit(context: Context) -> Alert:
    open_, most = context.redis("redis_connected_clients"), context.redis("redis_config_maxclients")
    description = (
        "{{ $value | humanizePercentage }} of maxclients are connected; at 100 % the next one is refused."
    )
    return Alert(
        name="InferenceCacheConnectionsNearLimit",
        group="availability",
        severity=Severity.WARNING,
        expr=f"{open_} / {most} > 0.9",
        for_s=120,
        summary="Nearly all connections that the server allows are taken",
        description=description,
        threshold="0.9 * the server's maxclients",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=120,
            bad={"redis_connected_clients": 950, "redis_config_maxclients": 1000},
            good={"redis_connected_clients": 900, "redis_config_maxclients": 1000},
            reads=description.replace("{{ $value | humanizePercentage }}", "95%"),
            bad_is="95 % of maxclients for two minutes",
            good_is="exactly 90 %",
            resolved_by="clients closed connections",
        ),
    )


def _connections_over_contract(context: Context) -> Alert:
    declared = {name: w.connections for name, w in context.contract.workloads.items()}
    bound = sum(declared.values())
    description = (
        f"{COUNT} clients are connected; the workloads declare {bound} together "
        f"({', '.join(f'{name} {count}' for name, count in declared.items())}). One of them leaks "
        "connections, or the "
        "contract is out of date."
    )
    return Alert(
        name="InferenceCacheConnectionsOverContract",
        group="availability",
        severity=Severity.WARNING,
        expr=f"{context.redis('redis_connected_clients')} > {bound}",
        for_s=900,
        summary="More connections than the workloads declare",
        description=description,
        threshold=f"the sum of connections = {bound}",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=900,
            bad={"redis_connected_clients": bound + 1},
            good={"redis_connected_clients": bound},
            reads=description.replace(COUNT, f"{bound + 1:.0f}"),
            bad_is="one more than declared for a quarter of an hour",
            good_is="as many as declared",
            resolved_by="the leak was closed",
        ),
    )


def _connection_churn(context: Context) -> Alert:
    bound = sum(w.connections for w in context.contract.workloads.values())
    made = context.redis("redis_connections_received_total")
    description = (
        f"{RATE} new connections a second: each of the {bound} that the workloads declare is made "
        "anew more than once a minute. Somebody connects for each call."
    )
    per_minute = 3 * bound
    return Alert(
        name="InferenceCacheConnectionChurn",
        group="availability",
        severity=Severity.WARNING,
        expr=f"rate({made}[{context.window(600)}]) > {context.per_second(bound / 60)}",
        for_s=600,
        summary="Clients connect again and again",
        description=description,
        threshold=f"the sum of connections = {bound}, each minute",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="each connection made anew three times a minute",
                inputs={"redis_connections_received_total": ramp(0, per_minute, 60)},
                evals=(
                    Eval(at="9m"),
                    Eval(at="30m", reads=description.replace(RATE, f"{per_minute / 60:.1f}")),
                ),
            ),
            Case(
                kind=Kind.QUIET,
                what="each connection made anew once a minute",
                inputs={"redis_connections_received_total": ramp(0, bound, 60)},
                evals=(Eval(at="15m"), Eval(at="50m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="connections are kept again",
                inputs={
                    "redis_connections_received_total": then(
                        ramp(0, per_minute, 31), flat(30 * per_minute, 30)
                    )
                },
                evals=(
                    Eval(at="30m", reads=description.replace(RATE, f"{per_minute / 60:.1f}")),
                    Eval(at="40m"),
                ),
            ),
        ),
    )


def _loading_too_long(context: Context) -> Alert:
    bound = context.contract.deadlines.warm_up_s
    wait = max(60.0, 60 * round(bound / 60))
    description = (
        f"The server has been loading its data for more than {number(wait)} s and answers LOADING to "
        f"everybody; decided are {number(bound)} s until it is warm."
    )
    return Alert(
        name="InferenceCacheLoadingTooLong",
        group="availability",
        severity=Severity.CRITICAL,
        expr=f"{context.redis('redis_loading_dump_file')} == 1",
        for_s=wait,
        summary="The server does not come up: it is loading",
        description=description,
        threshold=f"warm_up_s = {number(bound)}, in whole minutes",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=wait,
            bad={"redis_loading_dump_file": 1},
            good={"redis_loading_dump_file": 0},
            reads=description,
            bad_is="loading for longer than it may take",
            good_is="loaded",
            resolved_by="the data is loaded",
        ),
    )


def _resets(context: Context, window_s: float) -> str:
    """Starts of the server within a window; by job, as the pod of a new start may have another address."""
    uptime = f"min by (namespace, job) ({context.redis('redis_uptime_in_seconds')})"
    return f"resets({uptime}[{context.window(window_s)}:{context.window(30)}])"


def _restarted(context: Context) -> Alert:
    description = (
        f"The server was started anew {COUNT} times in 15 minutes. After a kill the last "
        f"{number(context.contract.instance.loss_window_s)} s of writes may be missing, and the cache is "
        "cold or loading."
    )
    reads = description.replace(COUNT, "1")
    up = then(ramp(36_000, 60, 30), ramp(10, 60, 60))
    return Alert(
        name="InferenceCacheRestarted",
        group="availability",
        severity=Severity.WARNING,
        expr=f"{_resets(context, 900)} > 0",
        for_s=0,
        summary="The server was restarted",
        description=description,
        threshold="any restart",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="the uptime begins anew",
                inputs={"redis_uptime_in_seconds": up},
                evals=(Eval(at="29m"), Eval(at="30m", reads=reads, target=Target.REDIS_JOB)),
            ),
            Case(
                kind=Kind.QUIET,
                what="scrapes are missing, and the uptime goes on",
                inputs={
                    "redis_uptime_in_seconds": then(ramp(36_000, 60, 30), missing(4), ramp(38_040, 60, 30))
                },
                evals=(Eval(at="35m"), Eval(at="40m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="a quarter of an hour after the start",
                inputs={"redis_uptime_in_seconds": up},
                evals=(
                    Eval(at="40m", reads=reads, target=Target.REDIS_JOB),
                    Eval(at="46m"),
                ),
            ),
        ),
    )


def _restart_loop(context: Context) -> Alert:
    description = (
        f"The server was started anew {COUNT} times in an hour: it is killed again and again, and is "
        "never warm."
    )
    life = ramp(10, 60, 12)
    return Alert(
        name="InferenceCacheRestartLoop",
        group="availability",
        severity=Severity.CRITICAL,
        expr=f"{_resets(context, 3600)} >= 3",
        for_s=0,
        summary="The server is restarted again and again",
        description=description,
        threshold="three restarts in an hour",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="the third restart within an hour",
                inputs={"redis_uptime_in_seconds": then(*[life] * 4)},
                evals=(
                    Eval(at="35m"),
                    Eval(
                        at="36m",
                        reads=description.replace(COUNT, "3"),
                        target=Target.REDIS_JOB,
                    ),
                ),
            ),
            Case(
                kind=Kind.QUIET,
                what="two restarts, as in a rolling update that had to be undone",
                inputs={"redis_uptime_in_seconds": then(*[life] * 2, ramp(10, 60, 60))},
                evals=(Eval(at="36m"), Eval(at="60m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="an hour later only two are left",
                inputs={"redis_uptime_in_seconds": then(*[life] * 3, ramp(10, 60, 90))},
                evals=(
                    Eval(
                        at="40m",
                        reads=description.replace(COUNT, "3"),
                        target=Target.REDIS_JOB,
                    ),
                    Eval(at="75m"),
                ),
            ),
        ),
        inhibits=("InferenceCacheRestarted",),
    )
