"""The verdict: outcomes only rise, counts add up, and each situation has its own exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_run import sample_contract, sample_results, sample_run, sample_target

from inference_cache.contract import Contract, DataClass, Level
from inference_cache.gate.findings import Finding, Plot, SpecResult
from inference_cache.gate.outcomes import ExitCode, Outcome, Verdict
from inference_cache.gate.verdict import ClauseResult, RunResult, accepted_risks, judge

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
    audit: Mapping[str, int] | None = None,
    contract: Contract = CONTRACT,
) -> RunResult:
    if results is None:
        results = [
            SpecResult(
                clause=clause, spec=f"test_{clause}", outcome=outcome.label, reason=f"because {outcome.label}"
            )
            for clause, outcome in (spec_outcomes or {}).items()
        ]
    return judge(
        contract=contract,
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
        audit=audit,
    )


def of(run: RunResult, clause: str) -> ClauseResult:
    return next(result for result in run.clauses if result.clause.id == clause)


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
        left_out = of(run, OTHER_MUST)
        assert run.exit_code == 4
        assert (left_out.selected, left_out.reason) == (False, "not selected in this run")

    def test_each_reason_is_one_sentence_with_the_clauses(self) -> None:
        two = {MUST: Outcome.FAILED, OTHER_MUST: Outcome.FAILED}
        for run, reason in (
            (judged(two), f"violated: {MUST}, {OTHER_MUST}"),
            (judged(two, broken="it went away"), f"violated: {MUST}, {OTHER_MUST}; it went away"),
            (judged({SHOULD: Outcome.ERROR}), f"the suite broke in: {SHOULD}"),
            (judged({}), "no clause was verified by this run"),
            (
                judged(ALL_PASSED | {MUST: Outcome.NOT_PROVEN}, require_all=True),
                f"required but not proven: {MUST}",
            ),
            (
                judged({MUST: Outcome.PASSED, SHOULD: Outcome.FAILED, OTHER_MUST: Outcome.WAIVED}),
                "2 clauses verified, none that decides was violated",
            ),
        ):
            assert run.reason == reason

    def test_each_verdict_has_its_words_and_code(self) -> None:
        assert judged({}, broken="unreachable").verdict is Verdict.BROKEN
        assert judged({SHOULD: Outcome.ERROR}).verdict is Verdict.BROKEN
        assert judged({MUST: Outcome.ERROR, OTHER_MUST: Outcome.PASSED}).exit_code is ExitCode.BROKEN

    def test_a_may_clause_never_decides(self) -> None:
        clauses = {**CONTRACT.clauses, SHOULD: replace(CONTRACT.clauses[SHOULD], level=Level.MAY)}
        for strict in (False, True):
            run = judged(
                ALL_PASSED | {SHOULD: Outcome.FAILED},
                strict=strict,
                contract=replace(CONTRACT, clauses=clauses),
            )
            assert run.exit_code == 0


class TestJoining:
    def test_reason_of_the_deciding_outcome_comes_first(self) -> None:
        """A spec that could not run stays visible behind the one that decided."""
        run = judged(
            results=[
                SpecResult(clause=MUST, spec="a.py::TestA::test_gpu", outcome="not proven", reason="no GPU"),
                SpecResult(clause=MUST, spec="a.py::test_cpu", outcome="failed", reason="wrong bytes"),
            ]
        )
        assert of(run, MUST).reason == "wrong bytes; test_gpu: not proven: no GPU"

    def test_same_problem_seen_twice_is_one_finding(self) -> None:
        """Findings with the same expectation and remedy are told once."""
        finding = Finding(expected="no OOM", observed="3 OOM errors", remedy="set a policy")
        results = [
            SpecResult(clause=MUST, spec=f"a.py::test_{n}", outcome="failed", findings=(finding,))
            for n in "ab"
        ]
        assert of(judged(results=results), MUST).findings == (finding,)

    def test_findings_are_told_in_the_order_in_which_they_were_found(self) -> None:
        """Of a problem seen twice the first sight is told, with its numbers."""

        def finding(expected: str, observed: str) -> Finding:
            return Finding(expected=expected, observed=observed)

        first, second, third = finding("a", "1"), finding("b", "2"), finding("c", "3")
        results = [
            SpecResult(clause=MUST, spec="a.py::test_a", outcome="failed", findings=(first, second)),
            SpecResult(
                clause=MUST, spec="a.py::test_b", outcome="failed", findings=(finding("a", "4"), third)
            ),
        ]
        assert of(judged(results=results), MUST).findings == (first, second, third)

    def test_everything_that_the_specs_said_is_kept(self) -> None:
        plots = [Plot(title=t, kind="bar", x_label="x", y_label="y", series=()) for t in "ab"]
        results = [
            SpecResult(
                clause=MUST,
                spec=f"a.py::test_{n}",
                outcome="passed",
                duration_s=1.5,
                measurements={"both": n, f"only_{n}": n},
                plots=(plots[n],),
                proven_on=where,
            )
            for n, where in enumerate(("embedded", "twin"))
        ]
        told = of(judged(results=[*results, replace(results[0], plots=(), proven_on="")]), MUST)
        assert (told.clause, told.selected, told.duration_s) == (CONTRACT.clauses[MUST], True, 4.5)
        assert told.measurements == {"both": 0, "only_0": 0, "only_1": 1}
        assert told.plots == tuple(plots)
        assert told.specs == ("a.py::test_0", "a.py::test_1", "a.py::test_0")
        assert told.proven_on == "embedded; twin"

    def test_reasons_are_told_once_and_empty_ones_not(self) -> None:
        results = [
            SpecResult(clause=MUST, spec=f"a.py::test_{n}", outcome=outcome, reason=reason)
            for n, (outcome, reason) in enumerate(
                [
                    ("failed", ""),
                    ("passed", ""),
                    ("failed", "y"),
                    ("passed", "z"),
                    ("failed", "y"),
                    ("failed", "x"),
                ]
            )
        ]
        assert of(judged(results=results), MUST).reason == "y; x; test_3: passed: z"

    def test_a_clause_of_which_nothing_ran_says_so(self) -> None:
        run = judged({}, selected=frozenset({MUST}), unready={OTHER_MUST: "needs ray"})
        assert of(run, MUST).reason == "no spec of this clause ran"
        assert of(run, OTHER_MUST).reason == "needs ray"
        assert of(run, SHOULD).reason == "not selected in this run"
        assert [of(run, one).outcome for one in (MUST, OTHER_MUST, SHOULD)] == [Outcome.NOT_PROVEN] * 3

    def test_a_run_carries_what_it_was_judged_by(self) -> None:
        run = judged(ALL_PASSED, strict=True, require_all=True)
        assert (run.contract_name, run.contract_sha256) == (CONTRACT.name, CONTRACT.sha256)
        assert (run.target, run.seed, run.strict, run.require_all) == (sample_target(), 1, True, True)
        assert (run.started_at, run.duration_s, run.version) == ("2026-11-24T17:55:27+00:00", 1.0, "0.1.0")
        assert (run.audit, judged({}, audit={"keys": 1}).audit) == ({}, {"keys": 1})
        assert not judged({}).strict
        assert not judged({}).require_all

    def test_accepted_risks_say_what_may_be_lost_and_who_accepted_it(self) -> None:
        workloads = dict(CONTRACT.workloads)
        for risk in judged({}).accepted_risks:
            workload = workloads.pop(risk.subject)
            assert risk.statement == (
                f"{workload.prefix}* is the only copy of its data and may be evicted under "
                f"{CONTRACT.instance.maxmemory_policy}"
            )
            assert (risk.bound, risk.accepted_by) == (workload.loss_bound, workload.accepted_by)
        assert workloads
        assert all(w.data_class is DataClass.RECONSTRUCTIBLE for w in workloads.values())

    @pytest.mark.parametrize(
        "changed",
        [
            {"data_class": DataClass.RECONSTRUCTIBLE},
            {"evictable": False},
            {"loss_bound": None},
            {"accepted_by": None},
        ],
        ids=lambda changed: next(iter(changed)),
    )
    def test_a_risk_is_one_of_an_evictable_only_copy_with_bound_and_name(
        self, changed: dict[str, Any]
    ) -> None:
        workloads = {**CONTRACT.workloads, "ray": replace(CONTRACT.workloads["ray"], **changed)}
        risks = accepted_risks(replace(CONTRACT, workloads=workloads))
        assert [risk.subject for risk in risks] == ["sessions"]

    def test_unready_reason_is_given(self) -> None:
        """A selected clause without a spec to run says what it lacks."""
        run = judged(ALL_PASSED | {}, unready={})
        assert all(not r.reason.startswith("no spec") for r in run.clauses)
        run = judged({}, unready={MUST: "needs ray"})
        assert of(run, MUST).reason == "needs ray"

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
