"""The planner's arithmetic: reuse distances, curves, sampling, what a key costs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_cache.contract import load
from inference_cache.errors import UsageError
from inference_cache.plan import Accesses, Curve, MemoryModel, ReuseSampler, make_plan
from inference_cache.plan._curve import BUCKETS, bucket_edges, buckets_of
from inference_cache.plan._distances import COLD, previous_accesses, reuse_distances

CONTRACT = load()
NAMES = list(CONTRACT.workloads)


def hashed(numbers: Sequence[int]) -> np.ndarray:
    """Numbers spread over all 64 bits, as a hash of keys is (splitmix64)."""
    mixed = np.asarray(numbers, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def accesses(
    numbers: Sequence[int],
    *,
    sizes: Sequence[float] | float = 1000.0,
    workloads: Sequence[int] | int = 1,
    times_s: Sequence[float] | None = None,
) -> Accesses:
    count = len(numbers)
    return Accesses(
        ids=hashed(numbers),
        stored_bytes=np.broadcast_to(np.asarray(sizes, dtype=np.float64), count).copy(),
        workloads=np.broadcast_to(np.asarray(workloads, dtype=np.int8), count).copy(),
        times_s=np.arange(count, dtype=np.float64)
        if times_s is None
        else np.asarray(times_s, dtype=np.float64),
    )


def zipf(count: int, keys: int, seed: int, alpha: float = 0.9) -> np.ndarray:
    weight = np.arange(1, keys + 1) ** -alpha
    return np.searchsorted(np.cumsum(weight) / weight.sum(), np.random.default_rng(seed).random(count))


def lru_hits(numbers: Sequence[int], sizes: dict[int, float], memory: float) -> int:
    """Hits of a real LRU list."""
    held: OrderedDict[int, float] = OrderedDict()
    used, hits = 0.0, 0
    for number in numbers:
        if number in held:
            hits += 1
            held.move_to_end(number)
            continue
        if sizes[number] > memory:
            held.clear()
            used = 0.0
            continue
        held[number] = sizes[number]
        used += sizes[number]
        while used > memory:
            used -= held.popitem(last=False)[1]
    return hits


class TestDistances:
    @given(
        keys=st.lists(st.integers(min_value=0, max_value=12), max_size=80),
        sizes=st.lists(st.integers(min_value=1, max_value=9), min_size=13, max_size=13),
    )
    @settings(max_examples=300, deadline=None)
    def test_are_the_bytes_of_the_distinct_keys_in_between(self, keys: list[int], sizes: list[int]) -> None:
        ids = np.array(keys, dtype=np.uint64)
        weights = np.array([sizes[key] for key in keys], dtype=np.float64)
        found = reuse_distances(previous_accesses(ids), weights)
        last: dict[int, int] = {}
        for at, key in enumerate(keys):
            if key in last:
                assert found[at] == sum(sizes[other] for other in set(keys[last[key] + 1 : at]))
            else:
                assert found[at] == COLD
            last[key] = at

    def test_previous_access_is_the_nearest_one(self) -> None:
        assert previous_accesses(np.array([7, 8, 7, 7, 8], dtype=np.uint64)).tolist() == [-1, -1, 0, 2, 1]

    def test_nothing_and_one_access(self) -> None:
        assert reuse_distances(np.empty(0, dtype=np.int64), np.empty(0)).size == 0
        assert reuse_distances(np.array([-1]), np.array([5.0])).tolist() == [COLD]


class TestCurve:
    def test_equals_an_lru_list_where_every_key_is_followed(self) -> None:
        """Within the one percent that a bucket is wide, at every size."""
        numbers = zipf(20_000, 800, seed=1).tolist()
        sizes = {number: 1000.0 + number * 37 % 5000 for number in range(800)}
        plan = make_plan([accesses(numbers, sizes=[sizes[n] for n in numbers])], CONTRACT, empty_bytes=0)
        curve = plan.shared["embeddings"]
        for memory in (50_000, 200_000, 500_000, 1_000_000, 2_000_000, 4_000_000):
            exact = lru_hits(numbers, sizes, memory) / len(numbers)
            assert curve.hit_ratio(memory) == pytest.approx(exact, abs=0.01), memory
        assert curve.reachable == pytest.approx(1 - len(set(numbers)) / len(numbers))

    def test_the_memory_for_a_ratio_gives_that_ratio(self) -> None:
        plan = make_plan([accesses(zipf(20_000, 800, seed=2).tolist())], CONTRACT)
        curve = plan.shared[""]
        for part in (0.5, 0.9, 1.0):
            memory = curve.memory_for(part)
            assert memory is not None
            assert curve.hit_ratio(memory) >= part * curve.reachable * (1 - 1e-6)
            assert curve.hit_ratio(memory * 0.97) < part * curve.reachable

    def test_is_the_same_however_the_trace_is_cut(self) -> None:
        numbers = zipf(30_000, 3000, seed=3).tolist()
        whole = make_plan([accesses(numbers)], CONTRACT)
        cut = make_plan(
            [
                accesses(numbers[at : at + 777], times_s=range(at, min(at + 777, len(numbers))))
                for at in range(0, len(numbers), 777)
            ],
            CONTRACT,
        )
        assert np.allclose(whole.shared[""].hits, cut.shared[""].hits)

    def test_crosses_the_runs_that_are_worked_off(self) -> None:
        """More accesses than are kept pending: the stack carries over from one run to the next."""
        numbers = np.arange(280_000) % 1000
        plan = make_plan([accesses(part) for part in np.array_split(numbers, 20)], CONTRACT, empty_bytes=0)
        curve = plan.shared[""]
        assert curve.first == 1000
        assert curve.hit_ratio(900 * 1000) == 0.0
        assert curve.hit_ratio(1020 * 1000) == pytest.approx(1 - 1000 / 280_000)

    def test_no_requests_is_no_hits_and_no_error(self) -> None:
        plan = make_plan([accesses([1, 1])], CONTRACT)
        assert plan.shared["ray"].hit_ratio(1 << 40) == 0.0
        assert plan.shared["ray"].memory_for(0.9) is None
        assert plan.workloads == ["embeddings"]

    def test_less_than_the_empty_server_holds_nothing(self) -> None:
        curve = make_plan([accesses([1, 1])], CONTRACT, empty_bytes=1 << 20).shared[""]
        assert curve.hit_ratio(1 << 20) == 0.0
        assert curve.hit_ratio((1 << 20) + 2000) == 0.5

    @given(st.floats(min_value=1, max_value=2.0**47))
    def test_a_bucket_ends_at_or_above_what_is_in_it(self, memory: float) -> None:
        bucket = int(buckets_of(np.array([memory]))[0])
        edges = bucket_edges()
        assert 0 <= bucket < BUCKETS
        assert memory <= edges[bucket] * (1 + 1e-9)
        assert bucket == 0 or edges[bucket - 1] < memory * (1 + 1e-9)


class TestExpiry:
    def test_a_use_after_the_ttl_is_a_miss_with_any_memory(self) -> None:
        ttl_s = CONTRACT.workloads["vllm_kv"].ttl_s
        assert ttl_s == 3600
        number = NAMES.index("vllm_kv")
        run = accesses([1, 1, 1], workloads=number, times_s=[0.0, 3600.0, 7201.0])
        curve = make_plan([run], CONTRACT).shared["vllm_kv"]
        assert (curve.first, curve.expired, curve.reachable) == (1, 1, pytest.approx(1 / 3))

    def test_without_a_ttl_nothing_expires(self) -> None:
        run = accesses([1, 1], workloads=NAMES.index("ray"), times_s=[0.0, 1e9])
        assert make_plan([run], CONTRACT).shared["ray"].reachable == 0.5


class TestSampling:
    @pytest.mark.parametrize("seed", range(2))
    def test_is_within_two_points_of_the_whole(self, seed: int) -> None:
        """One key in six followed, with sizes that differ by eight times."""
        numbers = zipf(160_000, 30_000, seed=seed)
        runs = [
            accesses(part, sizes=1000.0 + part * 2_654_435_761 % 7000) for part in np.array_split(numbers, 8)
        ]
        whole = make_plan(runs, CONTRACT, max_keys=100_000).shared[""]
        sampled = make_plan(runs, CONTRACT, max_keys=4096)
        assert sampled.rates["embeddings"] < 0.2
        for memory in (5e6, 20e6, 40e6, 80e6):
            assert sampled.shared[""].hit_ratio(memory) == pytest.approx(whole.hit_ratio(memory), abs=0.02)

    def test_a_few_large_keys_are_followed_beside_many_small_ones(self) -> None:
        small, large = zipf(120_000, 30_000, seed=5), zipf(12_000, 100, seed=6)
        numbers = np.concatenate([small, large + 1_000_000])
        order = np.random.default_rng(7).permutation(numbers.size)
        kinds = np.where(numbers >= 1_000_000, NAMES.index("vllm_kv"), NAMES.index("embeddings"))
        sizes = np.where(numbers >= 1_000_000, 4e6, 5e3)
        runs = [
            accesses(
                numbers[part], sizes=sizes[part], workloads=kinds[part], times_s=np.arange(part.size) / 1000
            )
            for part in np.array_split(order, 8)
        ]
        whole = make_plan(runs, CONTRACT, max_keys=100_000)
        sampled = make_plan(runs, CONTRACT, max_keys=2048)
        assert sampled.rates["vllm_kv"] == 1.0
        assert sampled.rates["embeddings"] < 0.15
        for name in ("vllm_kv", "embeddings"):
            for memory in (50e6, 150e6, 300e6, 450e6):
                assert sampled.shared[name].hit_ratio(memory) == pytest.approx(
                    whole.shared[name].hit_ratio(memory), abs=0.03
                ), (name, memory)

    def test_follows_no_more_keys_than_allowed(self) -> None:
        sampler = ReuseSampler(workloads=1, groups={"all": [0]}, ttls_s=[None], max_keys=256)
        for start in range(0, 2_000_000, 100_000):
            sampler.feed(accesses(np.arange(start, start + 100_000), workloads=0))
        sampler.curves(["only"], empty_bytes=0)
        assert len(sampler._stack) <= 256
        assert sampler.requests == [2_000_000]

    def test_a_sample_that_tells_nothing_is_refused(self) -> None:
        with pytest.raises(UsageError, match="at least 256"):
            ReuseSampler(workloads=1, groups={}, ttls_s=[None], max_keys=10)


class TestSharing:
    def test_a_neighbour_costs_hits_that_a_memory_of_ones_own_keeps(self) -> None:
        """Sessions in a loop between floods of blocks: hits alone, none in the same small shared memory."""
        rounds, sessions, blocks = 50, 20, 20
        numbers = [
            number
            for r in range(rounds)
            for number in (*range(sessions), *range(10**6 + r * blocks, 10**6 + (r + 1) * blocks))
        ]
        kinds = [NAMES.index("sessions" if n < 10**6 else "vllm_kv") for n in numbers]
        sizes = [1000.0 if n < 10**6 else 100_000.0 for n in numbers]
        plan = make_plan([accesses(numbers, sizes=sizes, workloads=kinds)], CONTRACT, empty_bytes=0)
        assert plan.alone["sessions"].hit_ratio(50_000) == pytest.approx(1 - 1 / rounds)
        assert plan.shared["sessions"].hit_ratio(50_000) == 0.0
        assert plan.shared["sessions"].hit_ratio(2_100_000) == pytest.approx(1 - 1 / rounds)
        cost = plan.only_copy_cost(50_000)
        assert cost is not None
        assert cost.lost_reads == {"sessions": 1.0}
        assert cost.pinned_bytes == pytest.approx(sessions * 1000)

    def test_no_only_copies_cost_nothing(self) -> None:
        assert make_plan([accesses([1, 1])], CONTRACT).only_copy_cost(1 << 30) is None


class TestMemoryModel:
    def test_jemalloc_has_four_classes_to_each_doubling(self) -> None:
        """The classes of jemalloc's manual page: 4 MiB and a header lie in the class of 5 MiB."""
        model = MemoryModel(allocator="jemalloc")
        wanted = np.array([1, 16, 17, 128, 129, 160, 161, 4096, 4097, 14_336, 14_337, (4 << 20) + 18])
        assert model.allocated(wanted).tolist() == [
            16, 16, 32, 128, 160, 160, 192, 4096, 5120, 14_336, 16_384, 5 << 20,
        ]  # fmt: skip

    def test_libc_rounds_to_sixteen_bytes_and_large_ones_to_pages(self) -> None:
        model = MemoryModel(allocator="libc")
        assert model.allocated(np.array([1, 24, 25, 40, 41])).tolist() == [24, 24, 40, 40, 56]
        # From 128 KiB on a mapping of whole pages, of which malloc keeps 16 bytes for itself.
        wanted = np.array([131_071, 131_072, 135_152, 135_153])
        assert model.allocated(wanted).tolist() == [131_080, 135_152, 135_152, 139_248]

    @pytest.mark.parametrize(
        ("value", "key", "ttl", "requests"),
        [
            # Up to 64 bytes one allocation holds both: 16 of header, 8 of TTL, 4 behind key and value each.
            (10, 30, False, (64,)),
            (11, 30, False, (50, 15)),
            (2, 30, True, (64,)),
            (3, 30, True, (58, 7)),
            # The header of a value grows with it.
            (255, 20, False, (40, 259)),
            (256, 20, False, (40, 262)),
            (65_535, 20, False, (40, 65_541)),
            (65_536, 20, False, (40, 65_546)),
            (2**32 - 1, 20, False, (40, 2**32 + 9)),
            (2**32, 20, True, (48, 2**32 + 18)),
        ],
    )
    def test_a_key_costs_its_entry_its_value_and_a_share_of_the_tables(
        self, value: int, key: int, ttl: bool, requests: tuple[int, ...]
    ) -> None:
        class Exact(MemoryModel):
            """An allocator that rounds nothing up, so that each byte shows."""

            def allocated(self, wanted_bytes: np.ndarray) -> np.ndarray:
                return wanted_bytes

        arrays = np.array([value]), np.array([key]), np.array([ttl])
        assert Exact().stored_bytes(*arrays).tolist() == [sum(requests) + (26 if ttl else 13)]
        model = MemoryModel()
        rounded = model.allocated(np.array(requests)).sum()
        assert model.stored_bytes(*arrays).tolist() == [rounded + (26 if ttl else 13)]

    def test_the_official_image_is_meant_unless_told_otherwise(self) -> None:
        assert MemoryModel().allocated(np.array([5000])).tolist() == [5120]


class TestCurveOfHits:
    """A curve of given hits, by hand."""

    def curve(self, hits: dict[int, float], *, requests: int = 10, empty_bytes: int = 1000) -> Curve:
        by_bucket = np.zeros(BUCKETS)
        for bucket, count in hits.items():
            by_bucket[bucket] = count
        return Curve(
            name="x",
            requests=requests,
            hits=by_bucket,
            first=0.0,
            expired=0.0,
            distinct_bytes=0.0,
            empty_bytes=empty_bytes,
        )

    def test_buckets_begin_at_a_kibibyte_and_64_of_them_double_it(self) -> None:
        edges = bucket_edges()
        assert (edges[0], edges[64], edges[-1], len(edges)) == (1024, 2048, 2.0**48, 38 * 64 + 1)
        memory = np.array([0.0, 0.5, 1024.0, 1025.0, 2048.0, 2049.0, 2.0**48, 2.0**60])
        assert buckets_of(memory).tolist() == [0, 0, 0, 1, 64, 65, BUCKETS - 1, BUCKETS - 1]

    def test_the_memory_for_a_part_is_the_edge_of_the_bucket_that_reaches_it(self) -> None:
        curve = self.curve({0: 1.0, 64: 1.0, BUCKETS - 1: 2.0})
        assert [curve.memory_for(part) for part in (0.0, 0.25, 0.26, 0.5, 0.51, 1.0)] == [
            2024, 2024, 3048, 3048, 2**48 + 1000, 2**48 + 1000,
        ]  # fmt: skip

    def test_no_part_at_all_needs_the_first_bucket_only(self) -> None:
        assert self.curve({64: 1.0}).memory_for(0.0) == 2024

    def test_less_than_one_hit_is_one_too(self) -> None:
        """Hits are estimated from a sample."""
        assert self.curve({BUCKETS - 1: 0.25}).memory_for(1.0) == 2**48 + 1000

    def test_an_edge_between_whole_bytes_is_rounded_up(self) -> None:
        assert 1035 < bucket_edges()[1] < 1036
        assert self.curve({1: 1.0}).memory_for(1.0) == 2036

    def test_hits_grow_evenly_within_a_bucket(self) -> None:
        curve = self.curve({0: 2.0, 64: 4.0})
        edges = bucket_edges()
        middle = 1000 + (edges[63] + edges[64]) / 2
        sizes = [1000, 1001, 1000 + 512, 2024, 3048, 1 << 40]
        assert curve.points([*sizes, 999]) == pytest.approx([0, 0.2 / 1024, 0.1, 0.2, 0.6, 0.6, 0])
        assert curve.hit_ratio(middle) == pytest.approx(0.4)

    def test_an_estimate_is_no_less_than_nothing_and_no_more_than_all(self) -> None:
        assert self.curve({0: -3.0}).reachable == 0.0
        assert self.curve({0: 11.0}).reachable == 1.0
        assert self.curve({0: 1.0}, requests=1).hit_ratio(1 << 40) == 1.0
        assert self.curve({}, requests=0).reachable == 0.0


def test_a_curve_without_hits_asks_for_no_memory() -> None:
    curve = Curve(
        name="x", requests=3, hits=np.zeros(BUCKETS), first=3, expired=0, distinct_bytes=9.0, empty_bytes=0
    )
    assert (curve.reachable, curve.hit_ratio(1 << 40), curve.memory_for(0.5)) == (0.0, 0.0, None)
