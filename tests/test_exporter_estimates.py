"""What the exporter concludes from keys that it saw: right on average, within the error that it states."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import pvariance
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_cache.exporter._estimate import Estimate, Tally, Window
from inference_cache.exporter._losses import Losses
from inference_cache.exporter._walks import FullWalk, RandomWalk, Walk

SIZES = (100, 1000, 50)
"""Bytes of a key by prefix."""


def draw(rng: random.Random, number: int) -> list[tuple[int, int]]:
    """Keys of a population of which 6, 3 and 1 in ten are of the prefixes, sizes spread by a factor of 3."""
    prefixes = rng.choices(range(3), (6, 3, 1), k=number)
    return [(prefix, int(SIZES[prefix] * rng.uniform(0.5, 1.5))) for prefix in prefixes]


def tally(keys: list[tuple[int, int]]) -> Tally:
    made = Tally(3)
    for prefix, size in keys:
        made.add(prefix, size)
    return made


@cache
def sampled_often() -> tuple[list[Estimate], list[list[Estimate]]]:
    """What lies in a population, and what each of 400 samples of it says."""
    rng = random.Random(20261124)
    population = draw(rng, 20_000)
    samples = [tally(rng.choices(population, k=500)).sampled(len(population)) for _ in range(400)]
    return tally(population).exact(len(population)), samples


class TestSampled:
    @pytest.mark.parametrize("what", ["keys", "bytes", "share"])
    def test_the_95_percent_interval_holds_in_about_95_percent_of_samples(self, what: str) -> None:
        truth, samples = sampled_often()
        inside = 0
        for estimates in samples:
            for true, told in zip(truth, estimates, strict=True):
                error = getattr(told, f"{what}_error")
                inside += abs(getattr(told, what) - getattr(true, what)) <= error

        assert 0.93 <= inside / 1200 <= 0.985

    def test_a_prefix_of_which_nothing_was_seen_has_an_error(self) -> None:
        estimates = tally([(0, 100)] * 500).sampled(100_000)

        assert estimates[2].keys == 0
        # Three in a hundred thousand would be missed by most samples, three in a hundred by none.
        assert 100 < estimates[2].keys_error < 2000
        assert estimates[2].bytes_error > 0
        assert estimates[2].average_bytes is None

    def test_nothing_at_all_is_known_of_an_empty_sample(self) -> None:
        nothing = Estimate(
            keys=0, keys_error=10, bytes=0, bytes_error=0, average_bytes=None, share=0, share_error=1
        )
        assert Tally(3).sampled(10) == [nothing] * 3

    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 10**9)), min_size=1), st.integers(1, 10**9))
    def test_shares_add_up_and_errors_are_no_less_than_nothing(
        self, keys: list[tuple[int, int]], population: int
    ) -> None:
        estimates = tally(keys).sampled(population)

        assert sum(e.share for e in estimates) == pytest.approx(1)
        assert sum(e.keys for e in estimates) == pytest.approx(population)
        assert all(min(e.keys_error, e.bytes_error, e.share_error) >= 0 for e in estimates)

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 1000)), min_size=30), st.integers(1, 10**9))
    def test_errors_are_those_of_the_books(self, keys: list[tuple[int, int]], population: int) -> None:
        """Agresti and Coull for counts, the ratio of two sums to first order; SCAN names keys in runs."""
        n, total = len(keys), sum(size for _, size in keys)
        z = 1.96 * math.sqrt(1.25)
        for prefix, told in enumerate(tally(keys).sampled(population)):
            own = [size if which == prefix else 0 for which, size in keys]
            count = sum(which == prefix for which, _ in keys)
            p, share = (count + 2) / (n + 4), sum(own) / total
            keys_error = z * population * math.sqrt(p * (1 - p) / (n + 4))
            bytes_error = z * population * math.sqrt(pvariance(own) / n)
            off = (one - share * size for one, (_, size) in zip(own, keys, strict=True))
            share_error = z * math.sqrt(sum(square * square for square in off)) / total
            average = sum(own) / count if count else None
            if count < 30:
                # So few that the largest may be missing: not surer of bytes than of keys.
                least = keys_error * (total / n if average is None else average)
                bytes_error = max(bytes_error, least)
                share_error = max(share_error, least * n / (total * population))
            assert told.keys_error == pytest.approx(keys_error)
            # Where all sizes are nearly equal, what is left of their squares is rounding.
            assert told.bytes_error == pytest.approx(bytes_error, rel=1e-5, abs=1e-4 * population)
            assert told.share_error == pytest.approx(share_error, rel=1e-5, abs=1e-12)
            assert (told.keys, told.bytes) == pytest.approx(
                (population * count / n, population * sum(own) / n)
            )
            assert (told.share, told.average_bytes) == (pytest.approx(share), pytest.approx(average))

    @pytest.mark.parametrize(("count", "bounded"), [(29, True), (30, False)])
    def test_from_30_keys_on_their_sizes_speak_for_themselves(self, count: int, bounded: bool) -> None:
        """All are of one size, so that only what the count leaves open is an error."""
        told = tally([(0, 100)] * count).sampled(1000)[0]
        assert (told.bytes_error > 0, told.share_error > 0) == (bounded, bounded)


class TestExact:
    def test_is_without_error_while_the_number_of_keys_stays(self) -> None:
        estimates = tally([(0, 100), (0, 300), (1, 50)]).exact(3)

        assert estimates[0] == Estimate(
            keys=2,
            keys_error=0,
            bytes=400,
            bytes_error=0,
            average_bytes=200,
            share=400 / 450,
            share_error=0,
        )
        assert estimates[2].share == 0

    def test_takes_keys_that_came_or_went_since_for_its_error(self) -> None:
        estimates = tally([(0, 100), (1, 50)]).exact(12)

        assert estimates[0].keys_error == 10
        assert estimates[0].bytes_error == 1000
        assert estimates[0].share_error == 10 / 12

    def test_what_went_is_an_error_of_the_same_kind(self) -> None:
        assert [e.share_error for e in tally([(0, 100), (1, 50), (1, 51), (1, 52)]).exact(1)] == [0.75] * 3

    def test_new_keys_are_taken_for_as_large_as_those_that_were_seen(self) -> None:
        assert tally([(0, 100), (0, 300)]).exact(4)[0].bytes_error == 400

    def test_of_a_prefix_without_keys_new_ones_may_be_as_large_as_all(self) -> None:
        told = tally([(0, 100), (1, 50)]).exact(4)[2]
        assert told == Estimate(
            keys=0, keys_error=2, bytes=0, bytes_error=150, average_bytes=None, share=0, share_error=0.5
        )

    def test_of_an_empty_server_is_nothing(self) -> None:
        nothing = Estimate(
            keys=0, keys_error=0, bytes=0, bytes_error=0, average_bytes=None, share=0, share_error=0
        )
        assert Tally(3).exact(0) == [nothing] * 3
        assert Tally(3).exact(1) == [replace(nothing, keys_error=1, share_error=1)] * 3


class TestWindow:
    def test_forgets_what_is_older_than_its_length(self) -> None:
        window = Window(2, length_s=10)
        window.add(0.0, 0, 100)
        window.add(5.0, 1, 50)
        window.forget(10.5)

        assert window.tally.count == [0, 1]
        assert window.age_s(12.0) == 7.0
        assert window.tally.sampled(10)[1].average_bytes == 50

    def test_keeps_what_is_just_as_old_as_its_length(self) -> None:
        window = Window(1, length_s=10)
        window.add(5.0, 0, 100)
        window.forget(15.0)
        assert window.tally.count == [1]

    def test_without_a_size_it_has_no_age(self) -> None:
        window = Window(1, length_s=10)
        assert window.age_s(12.0) == 0.0
        window.forget(12.0)
        assert window.tally.count == [0]


class TestLosses:
    def test_are_shared_out_by_the_sampled_keys_that_went(self) -> None:
        losses = Losses(3)
        for prefix, gone in ((0, 3), (1, 1)):
            for _ in range(gone):
                losses.saw_gone(prefix)
        losses.share_out(100, 0, evictable=[True] * 3, expirable=[True] * 3)

        assert losses.evicted == [75, 25, 0]
        assert losses.vanished == [3, 1, 0]

    def test_wait_for_a_sampled_key_to_be_gone(self) -> None:
        losses = Losses(2)
        losses.share_out(10, 0, evictable=[True] * 2, expirable=[True] * 2)
        assert losses.evicted == [0, 0]

        losses.saw_gone(1)
        losses.share_out(5, 0, evictable=[True] * 2, expirable=[True] * 2)
        assert losses.evicted == [0, 15]

    def test_are_none_when_keys_were_only_deleted(self) -> None:
        losses = Losses(2)
        losses.saw_gone(0)
        losses.share_out(0, 0, evictable=[True] * 2, expirable=[True] * 2)

        assert losses.evicted == losses.expired == [0, 0]

    def test_expirations_fall_on_prefixes_with_a_time_to_live(self) -> None:
        losses = Losses(2)
        for _ in range(50):
            losses.saw_gone(0)
            losses.saw_gone(1)
        losses.share_out(50, 50, evictable=[True, True], expirable=[False, True])

        assert losses.expired == [0, 50]
        assert losses.evicted == [50, 0]

    def test_are_given_out_once_and_add_up(self) -> None:
        losses = Losses(2)
        both = {"evictable": [True, True], "expirable": [True, True]}
        losses.saw_gone(0)
        losses.share_out(4, 2, **both)
        assert (losses.evicted, losses.expired) == ([4, 0], [2, 0])
        losses.saw_gone(1)
        losses.share_out(6, 3, **both)
        losses.share_out(0, 0, **both)
        assert (losses.evicted, losses.expired) == ([4, 6], [2, 3])
        assert losses.vanished == [1, 1]

    def test_expirations_wait_for_a_key_that_can_have_expired(self) -> None:
        losses = Losses(2)
        for prefix, expired in ((0, 5), (1, 2)):
            losses.saw_gone(prefix)
            losses.share_out(0, expired, evictable=[True, True], expirable=[False, True])
        assert (losses.evicted, losses.expired) == ([0, 0], [0, 7])

    def test_evictions_wait_for_a_key_that_can_have_been_evicted(self) -> None:
        losses = Losses(2)
        for prefix, evicted in ((0, 5), (1, 2)):
            losses.saw_gone(prefix)
            losses.share_out(evicted, 0, evictable=[False, True], expirable=[True, True])
        assert (losses.evicted, losses.expired) == ([0, 7], [0, 0])

    @pytest.mark.parametrize(
        ("evicted", "expired", "evictable", "expected"),
        [
            (16, 4, [True, True], [12, 4]),
            (16, 4, [True, False], [16, 0]),
            (12, 8, [True, True], [12, 0]),
            # More than their part expired: nothing of it is left for evictions, and nothing is owed.
            (8, 12, [True, True], [8, 0]),
        ],
    )
    def test_what_is_explained_by_expirations_is_no_eviction(
        self, evicted: int, expired: int, evictable: list[bool], expected: list[int]
    ) -> None:
        """Six keys of the first prefix are gone, which has no TTL, and four of the second, which has."""
        losses = Losses(2)
        for prefix in [0] * 6 + [1] * 4:
            losses.saw_gone(prefix)
        losses.share_out(evicted, expired, evictable=evictable, expirable=[False, True])
        assert (losses.evicted, losses.expired) == (expected, [0, expired])

    @pytest.mark.parametrize(("given", "says"), [([True], "shorter"), ([True] * 3, "longer")])
    @pytest.mark.parametrize("wrong", ["evictable", "expirable"])
    def test_every_prefix_needs_one_answer(self, wrong: str, given: list[bool], says: str) -> None:
        losses = Losses(2)
        losses.saw_gone(0)
        answers = {"evictable": [True, True], "expirable": [True, True], wrong: given}
        with pytest.raises(ValueError, match=says):
            losses.share_out(1, 1, **answers)

    def test_evictions_spare_what_the_policy_spares(self) -> None:
        losses = Losses(2)
        losses.saw_gone(0)
        losses.saw_gone(1)
        losses.share_out(10, 0, evictable=[False, True], expirable=[True, True])

        assert losses.evicted == [0, 10]

    @given(
        st.lists(
            st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.lists(st.integers(0, 2), max_size=20)),
            max_size=10,
        )
    )
    def test_never_exceed_what_the_server_counted(self, rounds: list[tuple[int, int, list[int]]]) -> None:
        losses = Losses(3)
        for evicted, expired, gone in rounds:
            for prefix in gone:
                losses.saw_gone(prefix)
            losses.share_out(evicted, expired, evictable=[True] * 3, expirable=[False, True, True])

        assert sum(losses.evicted) <= sum(evicted for evicted, _, _ in rounds) + 1e-6
        assert sum(losses.expired) <= sum(expired for _, expired, _ in rounds) + 1e-6
        assert min(losses.evicted + losses.expired) >= 0


class Keys:
    """A keyspace in memory that answers SCAN and MEMORY USAGE as a server does, in buckets of some keys."""

    def __init__(self, keys: dict[bytes, int], *, buckets: int = 64) -> None:
        self.sizes = dict(keys)
        self.buckets = buckets

    def answer(self, command: tuple[Any, ...]) -> Any:
        if command[0] == "MEMORY USAGE":
            return self.sizes.get(command[1])
        assert command[0] == "SCAN"
        bucket, found = int(command[1]) % self.buckets, []
        while True:
            found += [key for key in self.sizes if hash(key) % self.buckets == bucket]
            bucket += 1
            if bucket == self.buckets or len(found) >= command[3]:
                return bucket % self.buckets, found


def drive(walk: Walk, keys: Keys, *, turns: int, allowance: int = 20, from_s: float = 0.0) -> None:
    for turn in range(turns):
        now_s = from_s + turn * 0.1
        commands = walk.next(allowance, now_s)
        assert len(commands) <= allowance
        walk.absorb(commands, [keys.answer(command) for command in commands], now_s)


def classify(key: bytes) -> int:
    return 0 if key.startswith(b"a:") else 1


def nothing(*_: Any) -> None:
    pass


POPULATION = {b"a:%d" % n: 100 for n in range(300)} | {b"b:%d" % n: 20 for n in range(100)}


def full(on_gone: Callable[[int], None] = nothing) -> FullWalk:
    return FullWalk(classify, prefixes=2, pause_s=0.0, on_gone=on_gone, on_seen=nothing)


def sampling(on_gone: Callable[[int], None] = nothing, **changes: float) -> RandomWalk:
    lengths = {"window_s": 1000.0, "recheck_s": 5.0, **changes}
    return RandomWalk(classify, prefixes=2, on_gone=on_gone, on_seen=nothing, rng=random.Random(5), **lengths)


class TestFullWalk:
    def test_counts_every_key_once(self) -> None:
        walk, keys = full(), Keys(POPULATION)
        drive(walk, keys, turns=100)

        estimates = walk.estimates(400, 10.0)
        assert estimates is not None
        assert [(e.keys, e.bytes) for e in estimates] == [(300, 30_000), (100, 2000)]
        assert walk.sample_keys() == 400

    def test_knows_nothing_before_its_first_pass_is_whole(self) -> None:
        walk = full()
        drive(walk, Keys(POPULATION), turns=3)

        assert walk.estimates(400, 1.0) is None

    def test_tells_of_keys_that_are_gone_since_the_last_pass(self) -> None:
        gone: list[int] = []
        walk, keys = full(gone.append), Keys(POPULATION)
        drive(walk, keys, turns=100)
        for number in range(25):
            del keys.sizes[b"b:%d" % number]
        drive(walk, keys, turns=200, from_s=20.0)

        assert gone == [1] * 25

    def test_of_an_empty_server_says_that_there_is_nothing(self) -> None:
        walk = full()
        drive(walk, Keys({}), turns=100)

        estimates = walk.estimates(0, 10.0)
        assert estimates is not None
        assert all(e.keys == 0 for e in estimates)

    def test_rests_between_passes(self) -> None:
        walk = FullWalk(classify, prefixes=2, pause_s=5.0, on_gone=nothing, on_seen=nothing)
        drive(walk, Keys({}, buckets=1), turns=1)

        assert walk.next(20, 1.0) == []
        assert walk.next(20, 5.1) != []


class TestRandomWalk:
    def test_estimates_within_its_error(self) -> None:
        walk = sampling()
        drive(walk, Keys(POPULATION), turns=400)

        estimates = walk.estimates(400, 40.0)
        assert estimates is not None
        for told, keys, size in zip(estimates, (300, 100), (30_000, 2000), strict=True):
            assert abs(told.keys - keys) <= 2 * told.keys_error
            assert abs(told.bytes - size) <= 2 * told.bytes_error

    def test_uses_what_it_is_allowed(self) -> None:
        walk, keys = sampling(), Keys(POPULATION)
        sent = 0
        for turn in range(200):
            commands = walk.next(20, turn * 0.1)
            sent += len(commands)
            walk.absorb(commands, [keys.answer(command) for command in commands], turn * 0.1)

        assert sent > 0.5 * 200 * 20

    def test_tells_of_keys_that_went_after_they_were_sampled(self) -> None:
        gone: list[int] = []
        walk, keys = sampling(gone.append), Keys(POPULATION)
        drive(walk, keys, turns=40)
        assert gone == []
        keys.sizes = {key: size for key, size in keys.sizes.items() if key.startswith(b"a:")}
        drive(walk, keys, turns=60, from_s=6.0)

        assert set(gone) == {1}
        assert len(gone) > 20

    def test_forgets_what_it_saw_long_ago(self) -> None:
        walk, keys = sampling(window_s=3.0), Keys(POPULATION)
        drive(walk, keys, turns=50)
        keys.sizes = {key: size for key, size in keys.sizes.items() if key.startswith(b"a:")}
        drive(walk, keys, turns=60, from_s=100.0)

        estimates = walk.estimates(300, 106.0)
        assert estimates is not None
        assert estimates[1].keys == 0
        assert walk.age_s(106.0) <= 3.2
