"""Ways in which a suite can be wrong itself, applied to ours when a process of it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mutants.liveness import note_adapter

__all__ = ["PATCHES"]


def nothing_is_conformant() -> None:
    """A run that proved nothing ends with 0."""
    from inference_cache.gate import verdict
    from inference_cache.gate.outcomes import ExitCode, Verdict

    decide = verdict._decide

    def decided(*arguments: Any, **options: Any) -> Any:
        found = decide(*arguments, **options)
        if found[0] is Verdict.NOTHING_VERIFIED:
            note_adapter("nothing_is_conformant")
            return Verdict.CONFORMANT, ExitCode.CONFORMANT, "no clause was violated"
        return found

    verdict._decide = decided


def skipped_is_passed() -> None:
    """A spec that could not be run counts as passed."""
    from inference_cache.gate import verdict
    from inference_cache.gate.outcomes import Outcome

    join = verdict._join

    def joined(*arguments: Any) -> Any:
        result = join(*arguments)
        if result.outcome is Outcome.NOT_PROVEN and result.specs:
            note_adapter("skipped_is_passed")
            return replace(result, outcome=Outcome.PASSED)
        return result

    verdict._join = joined  # type: ignore[assignment]


def version_is_guessed() -> None:
    """The report names the version that the package was made for."""
    from fixtures.targets.base import Target

    describe = Target.describe

    def described(self: Target) -> Any:
        note_adapter("version_is_guessed")
        return replace(describe(self), server_version="9.1.2")

    Target.describe = described  # type: ignore[method-assign]


def keys_are_left() -> None:
    """The clean-up says that it is done and does nothing."""
    from fixtures.live.guard import Guard

    async def remove_all(self: Guard) -> tuple[int, int]:
        note_adapter("keys_are_left")
        return len(self._holdings.keys), 0

    Guard._remove_all = remove_all  # type: ignore[method-assign]


def keys_are_removed_by_pattern() -> None:
    """The clean-up removes whatever looks like a key of a run."""
    from fixtures.faults.resp import encode_command
    from fixtures.live import guard

    async def remove_all(self: guard.Guard) -> tuple[int, int]:
        reader, writer = await guard._open(self._upstream, self._upstream.login)
        answers = guard._Answers(reader)
        writer.write(encode_command([b"SCAN", b"0", b"MATCH", b"*:conformance:*", b"COUNT", b"100000"]))
        keys = [bytes(item.payload) for item in (await answers.next()).items[1].items]
        if keys:
            note_adapter("keys_are_removed_by_pattern")
            writer.write(encode_command([b"UNLINK", *keys]))
            await asyncio.wait_for(answers.next(), 10)
        writer.close()
        return len(keys), 0

    guard.Guard._remove_all = remove_all  # type: ignore[method-assign]


PATCHES: Mapping[str, Callable[[], None]] = {
    patch.__name__: patch
    for patch in (
        nothing_is_conformant,
        skipped_is_passed,
        version_is_guessed,
        keys_are_left,
        keys_are_removed_by_pattern,
    )
}
