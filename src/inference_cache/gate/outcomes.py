"""The outcome lattice of a clause and the exit codes of a run."""

from __future__ import annotations

from enum import IntEnum, StrEnum

__all__ = ["ExitCode", "Outcome", "Verdict"]


class Outcome(IntEnum):
    """What is known about one clause. Ordered: an outcome only ever rises."""

    NOT_PROVEN = 0
    WAIVED = 1
    PASSED = 2
    FAILED = 3
    ERROR = 4

    @property
    def label(self) -> str:
        """The word used in reports: ``not proven``, ``waived``, ``passed``, ``failed``, ``error``."""
        return self.name.lower().replace("_", " ")

    @classmethod
    def from_label(cls, label: str) -> Outcome:
        """The outcome with that report word.

        Raises:
            ValueError: no outcome has that label.
        """
        for outcome in cls:
            if outcome.label == label:
                return outcome
        raise ValueError(f"{label!r} is not an outcome; one of {', '.join(o.label for o in cls)}")

    def join(self, other: Outcome) -> Outcome:
        """The least upper bound: the higher of the two."""
        return max(self, other)


class ExitCode(IntEnum):
    """What the process tells its caller."""

    CONFORMANT = 0
    NOT_CONFORMANT = 1
    USAGE = 2
    BROKEN = 3
    """The target was unreachable, the suite broke, or the run was interrupted."""
    NOT_PROVEN = 4
    """Nothing failed, but under ``--require-all`` some MUST clause was not proven."""
    NOTHING_VERIFIED = 5


class Verdict(StrEnum):
    """The run's result in words."""

    CONFORMANT = "conformant"
    NOT_CONFORMANT = "not conformant"
    BROKEN = "broken"
    INCOMPLETE = "incomplete"
    """Conformant in what ran, but MUST clauses are not proven and all were required."""
    NOTHING_VERIFIED = "nothing verified"
