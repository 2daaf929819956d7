"""The verdict: outcomes only rise, counts add up, and each situation has its own exit code."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_run import sample_contract, sample_results, sample_run, sample_target

from inference_cache.gate.findings import Finding, SpecResult
from inference_cache.gate.outcomes import ExitCode, Outcome, Verdict
from inference_cache.gate.verdict import RunResult, judge

CONTRACT = sample_contract()
IDS = tuple(CONTRACT.clauses)
MUST, OTHER_MUST, SHOULD = "MEM-01", "MEM-03", "CFG-05"

outcomes = st.sampled_from(Outcome)
spec_results = st.lists(
    st.builds(
        SpecResult,
        clause=st.sampled_from(IDS),
        spec=st.sampled_from(["conformance/test_a.py::test_one", "conformance/test_a.py::test_two"]),
        outcome=outcomes.map(lambda outcome: outcome.label),
        reason=st.text(max_size=10),
        duration_s=st.floats(0, 1e4),
    ),
    max_size=200,
)


def judged(
    spec_outcomes: Mapping[str, Outcome] | None = None,
    *,
    results: list[SpecResult] | None = None,
    selected: frozenset[str] = frozenset(IDS),
    strict: bool = False,
    require_all: bool = False,
    broken: str | None = None,
    unready: Mapping[str, str] | None = None,
) -> RunResult:
    if results is None:
        results = [
            SpecResult(
                clause=clause, spec=f"test_{clause}", outcome=outcome.label, reason=f"because {outcome.label}"
            )
            for clause, outcome in (spec_outcomes or {}).items()
        ]
    return judge(
        contract=CONTRACT,
        results=results,
        selected=selected,
        target=sample_target(),
        seed=1,
        strict=strict,
        require_all=require_all,
        started_at="2026-11-24T17:55:27+00:00",
        duration_s=1.0,
        version="0.1.0",
        broken=broken,
        unready=unready,
    )


ALL_PASSED = dict.fromkeys(IDS, Outcome.PASSED)


class TestLattice:
    def test_order_is_the_one_of_the_design(self) -> None:
        """not proven < waived < passed < failed < error."""
        assert [outcome.label for outcome in sorted(Outcome)] == [
            "not proven",
            "waived",
            "passed",
            "failed",
            "error",
        ]

    @given(outcomes, outcomes)
    def test_join_is_the_higher_one(self, a: Outcome, b: Outcome) -> None:
        """Joining never lowers an outcome."""
        assert a.join(b) is max(a, b)

    @given(outcomes, outcomes)
    def test_join_is_commutative(self, a: Outcome, b: Outcome) -> None:
        """The order in which specs report does not matter."""
        assert a.join(b) is b.join(a)

    @given(outcomes, outcomes, outcomes)
    def test_join_is_associative(self, a: Outcome, b: Outcome, c: Outcome) -> None:
        """Nor does it matter which are joined first."""
        assert a.join(b).join(c) is a.join(b.join(c))

    @given(outcomes)
    def test_join_is_idempotent(self, a: Outcome) -> None:
        """A result that is reported twice counts once."""
        assert a.join(a) is a

    @given(outcomes)
    def test_not_proven_is_neutral(self, a: Outcome) -> None:
        """A spec that could not run takes nothing away from one that did."""
        assert Outcome.NOT_PROVEN.join(a) is a

    @given(outcomes)
    def test_labels_lead_back_to_outcomes(self, a: Outcome) -> None:
        """The report word of an outcome names it alone."""
        assert Outcome.from_label(a.label) is a

    def test_unknown_label_is_refused_with_the_known_ones(self) -> None:
        """A misspelt outcome is an error that lists what may stand there."""
        with pytest.raises(ValueError, match="'green' is not an outcome; one of not proven, waived, passed"):
            Outcome.from_label("green")


class TestCounts:
    @given(spec_results)
    def test_counts_add_up_for_any_results(self, results: list[SpecResult]) -> None:
        """Every clause has exactly one outcome, whatever the specs said."""
        run = judged(results=results)
        counts = run.counts
        assert counts.pop("total") == len(IDS)
        assert set(counts) == {outcome.label for outcome in Outcome}
        assert sum(counts.values()) == len(IDS)
        assert [result.clause.id for result in run.clauses] == list(IDS)

    @given(spec_results, st.randoms())
    def test_outcomes_do_not_depend_on_the_order_of_results(
        self, results: list[SpecResult], random: object
    ) -> None:
        """Specs may run side by side: whoever reports first, the verdict is the same."""
        shuffled = list(results)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        one, other = judged(results=results), judged(results=shuffled)
        assert [r.outcome for r in one.clauses] == [r.outcome for r in other.clauses]
        assert (one.verdict, one.exit_code) == (other.verdict, other.exit_code)

    @given(spec_results, spec_results)
    def test_more_results_never_lower_an_outcome(
        self, results: list[SpecResult], more: list[SpecResult]
    ) -> None:
        """What is known about a clause only rises."""
        before, after = judged(results=results), judged(results=results + more)
        assert all(b.outcome <= a.outcome for b, a in zip(before.clauses, after.clauses, strict=True))

    @given(spec_results, st.booleans(), st.booleans())
    def test_exit_code_belongs_to_the_verdict(
        self, results: list[SpecResult], strict: bool, require_all: bool
    ) -> None:
        """A verdict and its exit code say the same thing, and there is a reason for it."""
        run = judged(results=results, strict=strict, require_all=require_all)
        assert (run.verdict, run.exit_code) in {
            (Verdict.CONFORMANT, ExitCode.CONFORMANT),
            (Verdict.NOT_CONFORMANT, ExitCode.NOT_CONFORMANT),
            (Verdict.BROKEN, ExitCode.BROKEN),
            (Verdict.INCOMPLETE, ExitCode.NOT_PROVEN),
            (Verdict.NOTHING_VERIFIED, ExitCode.NOTHING_VERIFIED),
        }
        assert run.reason

    @given(spec_results)
    def test_conformant_means_no_must_clause_failed(self, results: list[SpecResult]) -> None:
        """Green is never given to a run with a violated MUST clause or a broken spec."""
        run = judged(results=results)
        bad = [r for r in run.clauses if r.outcome is Outcome.ERROR]
        bad += [r for r in run.clauses if r.outcome is Outcome.FAILED and r.clause.level == "MUST"]
        assert (run.exit_code is ExitCode.CONFORMANT) <= (not bad)


class TestExitCodes:
    def test_all_passed_is_conformant(self) -> None:
        """0: every clause was verified."""
        run = judged(ALL_PASSED)
        assert (run.exit_code, run.verdict) == (0, Verdict.CONFORMANT)

    def test_failed_must_is_not_conformant(self) -> None:
        """1: and the reason names the clause."""
        run = judged(ALL_PASSED | {MUST: Outcome.FAILED})
        assert (run.exit_code, run.verdict) == (1, Verdict.NOT_CONFORMANT)
        assert MUST in run.reason

    def test_failed_should_decides_only_when_strict(self) -> None:
        """A SHOULD clause is reported; it turns the run red under --strict alone."""
        results = ALL_PASSED | {SHOULD: Outcome.FAILED}
        assert judged(results).exit_code == 0
        assert judged(results, strict=True).exit_code == 1

    def test_not_proven_must_decides_only_when_all_are_required(self) -> None:
        """4: conformant in what ran, but --require-all asked for everything."""
        results = ALL_PASSED | {MUST: Outcome.NOT_PROVEN}
        assert judged(results).exit_code == 0
        run = judged(results, require_all=True)
        assert (run.exit_code, run.verdict) == (4, Verdict.INCOMPLETE)
        assert MUST in run.reason

    def test_not_proven_should_is_never_required(self) -> None:
        """--require-all asks for the MUST clauses."""
        assert judged(ALL_PASSED | {SHOULD: Outcome.NOT_PROVEN}, require_all=True).exit_code == 0

    def test_error_breaks_the_run(self) -> None:
        """3: a spec that failed by the harness is no verdict on the server."""
        run = judged(ALL_PASSED | {MUST: Outcome.ERROR})
        assert (run.exit_code, run.verdict) == (3, Verdict.BROKEN)
        assert MUST in run.reason

    def test_broken_run_is_broken_even_if_all_that_ran_passed(self) -> None:
        """3: an interrupted run has no verdict, and says why."""
        run = judged({MUST: Outcome.PASSED}, broken="interrupted")
        assert (run.exit_code, run.reason) == (3, "interrupted")

    def test_failure_beats_error(self) -> None:
        """A proven violation stands beside a spec that broke."""
        assert judged({MUST: Outcome.FAILED, OTHER_MUST: Outcome.ERROR}).exit_code == 1

    def test_failure_beats_broken(self) -> None:
        """A proven violation stands when the target went away afterwards; both are told."""
        run = judged({MUST: Outcome.FAILED}, broken="the target went away")
        assert run.exit_code == 1
        assert MUST in run.reason
        assert "the target went away" in run.reason

    def test_broken_beats_nothing_verified(self) -> None:
        """3: an unreachable target is not an empty selection."""
        assert judged({}, broken="unreachable").exit_code == 3

    @pytest.mark.parametrize("outcome", [None, Outcome.NOT_PROVEN, Outcome.WAIVED])
    def test_run_that_proved_nothing_is_not_green(self, outcome: Outcome | None) -> None:
        """5: no result, nothing but skips, or nothing but waivers."""
        run = judged(dict.fromkeys(IDS, outcome) if outcome is not None else {})
        assert (run.exit_code, run.verdict) == (5, Verdict.NOTHING_VERIFIED)

    def test_waived_must_neither_fails_nor_is_missing(self) -> None:
        """0: a waiver in force covers its clause under --strict and --require-all too."""
        results = ALL_PASSED | {MUST: Outcome.WAIVED}
        assert judged(results, strict=True, require_all=True).exit_code == 0

    def test_unselected_must_is_not_proven(self) -> None:
        """A clause that was left out is told as such, and --require-all misses it."""
        run = judged({MUST: Outcome.PASSED}, selected=frozenset({MUST}), require_all=True)
        left_out = next(r for r in run.clauses if r.clause.id == OTHER_MUST)
        assert run.exit_code == 4
        assert (left_out.selected, left_out.reason) == (False, "not selected in this run")


class TestJoining:
    def test_reason_of_the_deciding_outcome_comes_first(self) -> None:
        """A spec that could not run stays visible behind the one that decided."""
        run = judged(
            results=[
                SpecResult(clause=MUST, spec="a.py::test_gpu", outcome="not proven", reason="no GPU"),
                SpecResult(clause=MUST, spec="a.py::test_cpu", outcome="failed", reason="wrong bytes"),
            ]
        )
        result = next(r for r in run.clauses if r.clause.id == MUST)
        assert result.reason == "wrong bytes; test_gpu: not proven: no GPU"

    def test_same_problem_seen_twice_is_one_finding(self) -> None:
        """Findings with the same expectation and remedy are told once."""
        finding = Finding(expected="no OOM", observed="3 OOM errors", remedy="set a policy")
        results = [
            SpecResult(clause=MUST, spec=f"a.py::test_{n}", outcome="failed", findings=(finding,))
            for n in "ab"
        ]
        assert next(r for r in judged(results=results).clauses if r.clause.id == MUST).findings == (finding,)

    def test_unready_reason_is_given(self) -> None:
        """A selected clause without a spec to run says what it lacks."""
        run = judged(ALL_PASSED | {}, unready={})
        assert all(not r.reason.startswith("no spec") for r in run.clauses)
        run = judged({}, unready={MUST: "needs ray"})
        assert next(r for r in run.clauses if r.clause.id == MUST).reason == "needs ray"

    def test_unknown_clause_is_refused(self) -> None:
        """A spec that names a clause nobody declared is a mistake, not a result."""
        with pytest.raises(ValueError, match="XYZ-99, which the contract does not have"):
            judged({"XYZ-99": Outcome.PASSED})

    def test_accepted_risks_are_in_every_run(self) -> None:
        """Evictable only copies are named even where nothing was verified."""
        assert [risk.subject for risk in judged({}).accepted_risks] == ["ray", "sessions"]

    def test_results_survive_json(self) -> None:
        """Specs may run in another process than the reports."""
        for result in sample_results(CONTRACT):
            again = SpecResult.from_json(result.to_json())
            assert again.to_json() == result.to_json()

    def test_sample_is_not_conformant(self) -> None:
        """The run that the reports are tested with has something to show."""
        run = sample_run()
        assert run.exit_code is ExitCode.NOT_CONFORMANT
        assert all(run.counts.values())
