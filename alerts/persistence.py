"""Persistence: what a crash would lose by now, and what stops the server from keeping its promise."""

from __future__ import annotations

from alerts.model import Alert, Case, Context, Eval, Kind, Severity, Target, number
from alerts.series import COUNT, flat, humanize1024, level_cases, ramp, then
from inference_cache.contract import format_size

__all__ = ["alerts"]

_DASHBOARD = "persistence"


def alerts(context: Context) -> tuple[Alert, ...]:
    """The group; alerts about a way of persistence that the contract does not decide for are left out."""
    instance = context.contract.instance
    return (
        *((_aof_off(context), _aof_write_failed(context)) if instance.appendonly else ()),
        *((_snapshot_failed(context), _snapshot_stale(context)) if instance.save else ()),
        *((_aof_rewrite_failed(context),) if instance.appendonly else ()),
        *((_fsync_delayed(context),) if instance.appendonly and instance.appendfsync != "no" else ()),
        _slow_fork(context),
        *((_volume_filling(context),) if instance.appendonly else ()),
        _data_lost(context),
    )


def _aof_off(context: Context) -> Alert:
    description = "appendonly is off, decided is on: a restart loses everything since the last snapshot."
    return Alert(
        name="InferenceCacheAOFOff",
        group="persistence",
        severity=Severity.CRITICAL,
        expr=f"{context.redis('redis_aof_enabled')} == 0",
        for_s=300,
        summary="Writes are not logged",
        description=description,
        threshold="appendonly = true",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=300,
            bad={"redis_aof_enabled": 0},
            good={"redis_aof_enabled": 1},
            reads=description,
            bad_is="appendonly off for five minutes",
            good_is="appendonly on",
            resolved_by="switched on at run time",
        ),
    )


def _aof_write_failed(context: Context) -> Alert:
    instance = context.contract.instance
    refused = "; writes are refused (MISCONF)" if instance.on_disk_full == "stop-writes" else ""
    description = (
        f"The last write to the append-only file failed{refused}. What is acknowledged from now on is lost "
        f"in a crash; decided is a loss of at most {number(instance.loss_window_s)} s."
    )
    return Alert(
        name="InferenceCacheAOFWriteFailed",
        group="persistence",
        severity=Severity.CRITICAL,
        expr=f"{context.redis('redis_aof_last_write_status')} == 0",
        for_s=60,
        summary="The append-only file cannot be written",
        description=description,
        threshold=f"loss_window_s = {number(instance.loss_window_s)}",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=60,
            bad={"redis_aof_last_write_status": 0},
            good={"redis_aof_last_write_status": 1},
            reads=description,
            bad_is="writes to the log fail for a minute",
            good_is="writes to the log succeed",
            resolved_by="room on the volume again",
        ),
    )


def _snapshot_failed(context: Context) -> Alert:
    stops = context.contract.instance.on_disk_full == "stop-writes"
    description = "The last snapshot failed." + (
        " The server refuses writes (MISCONF) until one succeeds." if stops else ""
    )
    return Alert(
        name="InferenceCacheSnapshotFailed",
        group="persistence",
        severity=Severity.CRITICAL if stops else Severity.WARNING,
        expr=f"{context.redis('redis_rdb_last_bgsave_status')} == 0",
        for_s=60,
        summary="Snapshots fail",
        description=description,
        threshold=f"on_disk_full = {context.contract.instance.on_disk_full}",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=60,
            bad={"redis_rdb_last_bgsave_status": 0},
            good={"redis_rdb_last_bgsave_status": 1},
            reads=description,
            bad_is="the last snapshot has failed for a minute",
            good_is="the last snapshot succeeded",
            resolved_by="the next snapshot succeeded",
        ),
        inhibits=("InferenceCacheSnapshotStale",),
    )


def _schedule(save: str) -> tuple[int, int]:
    """The pair of the schedule that waits longest: seconds, changes."""
    words = [int(word) for word in save.split()]
    return max(zip(words[::2], words[1::2], strict=True))


def _snapshot_stale(context: Context) -> Alert:
    seconds, changes = _schedule(context.contract.instance.save)
    saved = context.redis("redis_rdb_last_save_timestamp_seconds")
    changed = context.redis("redis_rdb_changes_since_last_save")
    description = (
        f"The last snapshot is {{{{ $value | humanizeDuration }}}} old and there are changes since; the "
        f"schedule is one each {seconds} s."
    )
    # promtool's clock starts at 0, so a save at 0 is as old as the test.
    stale_at = 2 * seconds // 60 + 15
    reads = description.replace("{{ $value | humanizeDuration }}", _humanize_duration(stale_at * 60))
    resolved_at = stale_at + 10
    return Alert(
        name="InferenceCacheSnapshotStale",
        group="persistence",
        severity=Severity.WARNING,
        expr=f"time() - {saved} > {context.age(2 * seconds)}\nand {changed} >= {changes}",
        for_s=600,
        summary="No snapshot for twice the time that the schedule allows",
        description=description,
        threshold=f"2 * the longest interval of save = {2 * seconds} s",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="twice the interval and ten minutes after the last snapshot",
                inputs={
                    "redis_rdb_last_save_timestamp_seconds": flat(0, stale_at + 30),
                    "redis_rdb_changes_since_last_save": flat(changes, stale_at + 30),
                },
                evals=(
                    Eval(at=f"{2 * seconds // 60}m"),
                    Eval(at=f"{stale_at}m", reads=reads),
                ),
            ),
            Case(
                kind=Kind.QUIET,
                what="an old snapshot of data that has not changed since, and one within twice the interval",
                inputs={
                    "redis_rdb_last_save_timestamp_seconds": flat(0, stale_at + 60),
                    "redis_rdb_changes_since_last_save": then(
                        flat(changes, 2 * seconds // 60), flat(changes - 1, 90)
                    ),
                },
                evals=(Eval(at=f"{2 * seconds // 60}m"), Eval(at=f"{stale_at + 50}m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="a snapshot succeeded",
                inputs={
                    "redis_rdb_last_save_timestamp_seconds": then(
                        flat(0, resolved_at), flat(resolved_at * 60, 30)
                    ),
                    "redis_rdb_changes_since_last_save": flat(changes, resolved_at + 30),
                },
                evals=(Eval(at=f"{stale_at}m", reads=reads), Eval(at=f"{resolved_at}m")),
            ),
        ),
    )


def _aof_rewrite_failed(context: Context) -> Alert:
    description = (
        "The last rewrite of the append-only file failed: the file grows without bound, and a start has to "
        "replay all of it."
    )
    return Alert(
        name="InferenceCacheAOFRewriteFailed",
        group="persistence",
        severity=Severity.WARNING,
        expr=f"{context.redis('redis_aof_last_bgrewrite_status')} == 0",
        for_s=900,
        summary="The append-only file is not rewritten",
        description=description,
        threshold=f"volume = {format_size(context.contract.instance.volume_bytes, units='kubernetes')}",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=900,
            bad={"redis_aof_last_bgrewrite_status": 0},
            good={"redis_aof_last_bgrewrite_status": 1},
            reads=description,
            bad_is="the last rewrite has failed for a quarter of an hour",
            good_is="the last rewrite succeeded",
            resolved_by="the next rewrite succeeded",
        ),
    )


def _fsync_delayed(context: Context) -> Alert:
    window = context.contract.instance.loss_window_s
    description = (
        f"{COUNT} times in 15 minutes a write waited for the disk and held up every client: the disk "
        f"is too slow for a loss window of {number(window)} s."
    )
    reads = description.replace(COUNT, "15")
    return Alert(
        name="InferenceCacheFsyncDelayed",
        group="persistence",
        severity=Severity.WARNING,
        # One is a hiccup of the disk; one a minute is its pace.
        expr=f"increase({context.redis('redis_aof_delayed_fsync')}[{context.window(900)}]) > 10",
        for_s=300,
        summary="The disk cannot keep up with the append-only file",
        description=description,
        threshold=f"loss_window_s = {number(window)}, missed more than 10 times in 15 minutes",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="one a minute",
                inputs={"redis_aof_delayed_fsync": ramp(0, 1, 60)},
                evals=(Eval(at="5m"), Eval(at="30m", reads=reads)),
            ),
            Case(
                kind=Kind.QUIET,
                what="ten hiccups at once, then none",
                inputs={"redis_aof_delayed_fsync": then(flat(0, 20), flat(9, 60))},
                evals=(Eval(at="25m"), Eval(at="30m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="the disk has caught up for a quarter of an hour",
                inputs={"redis_aof_delayed_fsync": then(ramp(0, 1, 31), flat(30, 30))},
                evals=(Eval(at="30m", reads=reads), Eval(at="50m")),
            ),
        ),
    )


def _slow_fork(context: Context) -> Alert:
    strictest = min(context.contract.workloads.values(), key=lambda workload: workload.p99_s)
    bound = strictest.p99_s
    description = (
        "The last fork took {{ $value | humanizeDuration }} and nobody was served meanwhile; "
        f"{strictest.prefix} is promised {_humanize_duration(bound)} (p99)."
    )
    reads = description.replace("{{ $value | humanizeDuration }}", _humanize_duration(bound * 3))
    return Alert(
        name="InferenceCacheSlowFork",
        group="persistence",
        severity=Severity.WARNING,
        expr=f"{context.redis('redis_latest_fork_seconds')} > {number(bound)}",
        for_s=60,
        summary="Each save stops the server for longer than a read may take",
        description=description,
        threshold=f"the smallest p99_s = {number(bound)} ({strictest.prefix})",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=60,
            bad={"redis_latest_fork_seconds": bound * 3},
            good={"redis_latest_fork_seconds": bound},
            reads=reads,
            bad_is="a fork of three times the strictest p99",
            good_is="a fork of exactly the strictest p99",
            resolved_by="the next fork was fast",
        ),
    )


def _volume_filling(context: Context) -> Alert:
    volume = context.contract.instance.volume_bytes
    size = format_size(volume, units="kubernetes")
    log, used = context.redis("redis_aof_current_size_bytes"), context.redis("redis_memory_used_bytes")
    # The next rewrite writes the data set beside the log before it removes the log; snapshots take as much.
    bound = round(0.9 * volume)
    description = (
        "The append-only file, its next rewrite and a snapshot need {{ $value | humanize1024 }}B of a "
        "volume of "
        f"{size}. On a full volume writes are refused."
    )
    reads = description.replace("{{ $value | humanize1024 }}", humanize1024(volume))
    memory = context.contract.instance.maxmemory_bytes
    series = {"redis_memory_used_bytes": memory}
    return Alert(
        name="InferenceCacheVolumeFilling",
        group="persistence",
        severity=Severity.WARNING,
        expr=f"{log} + 2 * {used} > {bound}",
        for_s=900,
        summary="The volume has no room for the next rewrite",
        description=description,
        threshold=f"0.9 * volume = {format_size(bound)}",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=900,
            bad={"redis_aof_current_size_bytes": volume - 2 * memory, **series},
            good={"redis_aof_current_size_bytes": bound - 2 * memory, **series},
            reads=reads,
            bad_is="log, rewrite and snapshot are as large as the volume",
            good_is="they leave a tenth of it",
            resolved_by="the log was rewritten",
        ),
    )


def _data_lost(context: Context) -> Alert:
    window = context.contract.instance.loss_window_s
    keys = f"sum by (namespace, job) ({context.redis('redis_db_keys')})"
    uptime = f"min by (namespace, job) ({context.redis('redis_uptime_in_seconds')})"
    loading = f"max by (namespace, job) ({context.redis('redis_loading_dump_file')})"
    before = f"max_over_time({keys}[{context.window(1800)}:{context.window(60)}])"
    description = (
        "After the last start {{ $value | humanizePercentage }} of the keys of the 30 minutes before are "
        "there; a "
        f"restart may lose the writes of {number(window)} s."
    )
    reads = description.replace("{{ $value | humanizePercentage }}", "10%")
    db = 'redis_db_keys{db="db0"}'
    restart = then(ramp(36_000, 60, 30), ramp(30, 60, 60))
    quiet = {
        "redis_uptime_in_seconds": restart,
        "redis_loading_dump_file": flat(0, 90),
    }
    return Alert(
        name="InferenceCacheDataLost",
        group="persistence",
        severity=Severity.CRITICAL,
        # The pod of a new start may have another address, so all is compared by job.
        expr=f"{keys} / {before} < 0.8\nand {uptime} < {context.age(900)}\nand {loading} == 0",
        for_s=60,
        keep_firing_s=900,
        summary="The server came back without its data",
        description=description,
        threshold=f"loss_window_s = {number(window)}; a fifth of the keys is more than any load writes in it",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="a start with a tenth of the keys",
                inputs={db: then(flat(100_000, 30), flat(10_000, 60)), **quiet},
                evals=(
                    Eval(at="29m"),
                    Eval(at="31m", reads=reads, target=Target.REDIS_JOB),
                ),
            ),
            Case(
                kind=Kind.QUIET,
                what="a start with four fifths of the keys, and few keys while they are still being loaded",
                inputs={
                    db: then(flat(100_000, 30), flat(1_000, 2), flat(80_000, 58)),
                    "redis_uptime_in_seconds": restart,
                    "redis_loading_dump_file": then(flat(0, 30), flat(1, 2), flat(0, 58)),
                },
                evals=(Eval(at="32m"), Eval(at="40m"), Eval(at="80m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="a purge without a restart",
                inputs={
                    db: then(flat(100_000, 30), flat(1_000, 60)),
                    "redis_uptime_in_seconds": ramp(36_000, 60, 90),
                    "redis_loading_dump_file": flat(0, 90),
                },
                evals=(Eval(at="35m"),),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="a quarter of an hour after the cache has been filled again",
                inputs={
                    db: then(flat(100_000, 30), flat(10_000, 10), flat(90_000, 50)),
                    **quiet,
                },
                evals=(
                    Eval(at="39m", reads=reads, target=Target.REDIS_JOB),
                    Eval(at="60m"),
                ),
            ),
        ),
    )


def _humanize_duration(seconds: float) -> str:
    """Prometheus' ``humanizeDuration``."""
    if seconds < 1:
        return f"{seconds * 1000:.4g}ms"
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours}h {minutes}m {whole % 60}s"
    return f"{minutes}m {whole % 60}s" if minutes else f"{seconds:.4g}s"
