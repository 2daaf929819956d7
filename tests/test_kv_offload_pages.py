"""Copies between an engine's pages and its host tier, which engines on CPU are judged through."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fixtures.engines.vllm_pages import HostCopies

PAGE_BYTES = 8
BLOCKS = 12


class Tensor:
    """As much of a tensor as is looked at."""

    def __init__(self, content: np.ndarray) -> None:
        self.content = content

    def numpy(self) -> np.ndarray:
        return self.content


def caches(*, used_bytes: int = PAGE_BYTES, dtype: type = np.int8) -> tuple[Any, np.ndarray]:
    """The caches of an engine with one tensor, and its pages: page n holds n in each byte."""
    pages = np.repeat(np.arange(BLOCKS, dtype=dtype), PAGE_BYTES).reshape(BLOCKS, PAGE_BYTES)
    ref = SimpleNamespace(tensor_idx=0, page_size_bytes=used_bytes)
    tensor = SimpleNamespace(tensor=Tensor(pages), page_size_bytes=PAGE_BYTES)
    return SimpleNamespace(tensors=[tensor], group_data_refs=[[ref]]), pages


def chosen(*blocks: int, first: int = 0) -> Any:
    return SimpleNamespace(block_ids=list(blocks), group_sizes=[len(blocks)], block_indices=[first])


def test_pages_go_out_and_come_back() -> None:
    cache, pages = caches()
    host = np.zeros((4, PAGE_BYTES), dtype=np.int8)
    copies = HostCopies(cache, [Tensor(host)], blocks_per_chunk=1)
    copied = copies.copy(chosen(3, 7), [2, 0], to_host=True)
    assert (copied.size_bytes, host[2][0], host[0][0]) == (2 * PAGE_BYTES, 3, 7)
    copies.copy(chosen(5, 6), [0, 2], to_host=False)
    assert (pages[5] == 7).all()
    assert (pages[6] == 3).all()


@pytest.mark.parametrize(
    ("first", "wanted"), [(0, [[4, 5], [6, -1]]), (1, [[-1, 4], [5, 6]])], ids=["aligned", "in mid-chunk"]
)
def test_several_blocks_share_a_chunk(first: int, wanted: list[list[int]]) -> None:
    cache, _ = caches()
    host = np.full((2, 2 * PAGE_BYTES), -1, dtype=np.int8)
    HostCopies(cache, [Tensor(host)], blocks_per_chunk=2).copy(
        chosen(4, 5, 6, first=first), [0, 1], to_host=True
    )
    assert host[:, ::PAGE_BYTES].tolist() == wanted


def test_the_padding_of_a_page_stays() -> None:
    cache, _ = caches(used_bytes=5)
    host = np.full((1, PAGE_BYTES), -1, dtype=np.int8)
    copied = HostCopies(cache, [Tensor(host)], blocks_per_chunk=1).copy(chosen(9), [0], to_host=True)
    assert copied.size_bytes == 5
    assert host[0].tolist() == [9] * 5 + [-1] * 3


def test_a_cache_of_another_form_is_refused() -> None:
    cache, _ = caches(dtype=np.int16)
    with pytest.raises(TypeError, match="pages of 8 bytes"):
        HostCopies(cache, [Tensor(np.zeros((1, PAGE_BYTES), dtype=np.int8))], blocks_per_chunk=1)
