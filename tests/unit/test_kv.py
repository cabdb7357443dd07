"""Key/value storage."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.kv import GRANULE, KeyValues

Float = NDArray[np.float32]
ALL = slice(None)


def block(rows: int, length: int, seed: int) -> list[Float]:
    """Keys or values of 2 layers with 3 heads of 4 channels."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((rows, 3, length, 4)).astype(np.float32) for _ in range(2)]


def test_what_was_written_is_read_and_the_rest_is_zero() -> None:
    cache = KeyValues(layers=2, rows=3, heads=3, dim=4)
    k, v = block(2, 5, 0), block(2, 5, 1)
    cache.write(slice(1, 3), 7, k, v)
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[1:, :, 7:12], written)
        assert not found[0].any()
        assert not found[:, :, :7].any()
        assert not found[:, :, 12:].any()


def test_growing_keeps_what_was_written() -> None:
    cache = KeyValues(2, 2, 3, 4)
    written_k: list[list[Float]] = []
    written_v: list[list[Float]] = []
    for start in range(0, 5 * GRANULE, 10):
        written_k.append(block(2, 10, start))
        written_v.append(block(2, 10, start + 1))
        cache.write(ALL, start, written_k[-1], written_v[-1])
    for layer in range(2):
        k = np.concatenate([part[layer] for part in written_k], axis=2)
        v = np.concatenate([part[layer] for part in written_v], axis=2)
        np.testing.assert_array_equal(cache.keys()[layer][:, :, : k.shape[2]], k)
        np.testing.assert_array_equal(cache.values()[layer][:, :, : v.shape[2]], v)
        assert not cache.keys()[layer][:, :, k.shape[2] :].any()


def test_capacity_is_a_multiple_of_the_granule_and_grows_seldom() -> None:
    cache = KeyValues(1, 1, 1, 1)
    capacities = set()
    for length in range(1, 40 * GRANULE):
        cache.reserve(length)
        assert cache.capacity >= length
        assert cache.capacity % GRANULE == 0
        assert cache.keys()[0].shape[2] == cache.capacity
        capacities.add(cache.capacity)
    assert len(capacities) <= 20
    assert cache.capacity <= 1.25 * 40 * GRANULE + GRANULE


def test_reserving_less_changes_nothing() -> None:
    cache = KeyValues(1, 1, 1, 1)
    before = cache.keys()[0]
    cache.reserve(GRANULE)
    assert cache.keys()[0] is not before
    assert np.shares_memory(cache.keys()[0], before)


def test_leading_rows_are_views_in_one_piece() -> None:
    cache = KeyValues(2, 4, 3, 4)
    for array in (*cache.keys(slice(0, 2)), *cache.values(slice(0, 2))):
        assert array.base is not None
        assert array.flags.c_contiguous
    assert np.shares_memory(cache.keys(slice(0, 2))[0], cache.keys()[0])


@pytest.mark.parametrize("length", [1, 5])
def test_moving_a_row_copies_its_first_positions_only(length: int) -> None:
    cache = KeyValues(2, 3, 3, 4)
    k, v = block(3, 5, 0), block(3, 5, 1)
    cache.write(ALL, 0, k, v)
    cache.move(source=2, target=0, length=length)
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[0, :, :length], written[2, :, :length])
        np.testing.assert_array_equal(found[0, :, length:5], written[0, :, length:])
        np.testing.assert_array_equal(found[1:, :, :5], written[1:])


def test_a_copy_is_independent() -> None:
    cache = KeyValues(2, 1, 3, 4)
    k, v = block(1, 5, 0), block(1, 5, 1)
    cache.write(ALL, 0, k, v)
    twin = cache.copy()
    cache.write(ALL, 0, block(1, 2 * GRANULE, 2), block(1, 2 * GRANULE, 3))
    assert twin.capacity == GRANULE
    np.testing.assert_array_equal(twin.keys()[1][:, :, :5], k[1])
    np.testing.assert_array_equal(twin.values()[0][:, :, :5], v[0])
    twin.write(ALL, 5, k, v)
    assert twin.capacity == GRANULE


def test_bytes_count_keys_and_values() -> None:
    cache = KeyValues(2, 3, 4, 5)
    assert cache.nbytes == 2 * 2 * 3 * 4 * GRANULE * 5 * 4
    cache.reserve(GRANULE + 1)
    assert cache.nbytes == 2 * 2 * 3 * 4 * 2 * GRANULE * 5 * 4
