"""Keys and values: of the language model's slots, and of a flow stream's past."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.flow.past import RESERVED, Past
from cosyserve.llm.slots import GRANULE, SlotCache

Float = NDArray[np.float32]
ALL = slice(None)


def block(rows: int, length: int, seed: int) -> list[Float]:
    """Keys or values of 2 layers with 3 heads of 4 channels."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((rows, 3, length, 4)).astype(np.float32) for _ in range(2)]


def test_what_was_written_is_read_and_the_rest_is_zero() -> None:
    cache = SlotCache(layers=2, rows=3, heads=3, dim=4)
    k, v = block(2, 5, 0), block(2, 5, 1)
    cache.write(slice(1, 3), 7, k, v)
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[1:, :, 7:12], written)
        assert not found[0].any()
        assert not found[:, :, :7].any()
        assert not found[:, :, 12:].any()


def test_growing_keeps_what_was_written() -> None:
    cache = SlotCache(2, 2, 3, 4)
    written_k: list[list[Float]] = []
    written_v: list[list[Float]] = []
    for start in range(0, 5 * GRANULE, 10):
        written_k.append(block(2, 10, start))
        written_v.append(block(2, 10, start + 1))
        cache.fit(start + 10)
        cache.write(ALL, start, written_k[-1], written_v[-1])
    for layer in range(2):
        k = np.concatenate([part[layer] for part in written_k], axis=2)
        v = np.concatenate([part[layer] for part in written_v], axis=2)
        np.testing.assert_array_equal(cache.keys()[layer][:, :, : k.shape[2]], k)
        np.testing.assert_array_equal(cache.values()[layer][:, :, : v.shape[2]], v)
        assert not cache.keys()[layer][:, :, k.shape[2] :].any()


def test_room_of_a_long_sequence_is_given_back_and_rows_in_use_are_kept() -> None:
    cache = SlotCache(2, 3, 3, 4)
    k, v = block(1, 5, 0), block(1, 5, 1)
    cache.fit(40 * GRANULE)
    cache.write(slice(1, 2), 0, *(block(1, 40 * GRANULE, seed) for seed in (2, 3)))
    cache.write(slice(0, 1), 0, k, v)
    cache.fit(6)
    assert cache.capacity >= 40 * GRANULE
    cache.erase(1)
    cache.fit(6)
    assert cache.capacity == GRANULE
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[:1, :, :5], written)


def test_appending_puts_each_row_at_its_own_position() -> None:
    cache = SlotCache(2, 3, 3, 4)
    k, v = block(2, 1, 0), block(2, 1, 1)
    cache.append(np.array([4, 7]), k, v)
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[0, :, 4], written[0, :, 0])
        np.testing.assert_array_equal(found[1, :, 7], written[1, :, 0])
        assert np.count_nonzero(found) == written.size


def test_an_erased_row_is_zero_and_the_others_are_not() -> None:
    cache = SlotCache(2, 3, 3, 4)
    cache.write(ALL, 0, block(3, 5, 0), [np.full_like(part, np.nan) for part in block(3, 5, 1)])
    cache.append(np.array([5, 5]), block(2, 1, 2), block(2, 1, 3))
    cache.erase(1)
    for array in (*cache.keys(), *cache.values()):
        assert not array[1].any()
        assert array[[0, 2], :, :5].any()


def test_capacity_is_a_multiple_of_the_granule_and_grows_seldom() -> None:
    cache = SlotCache(1, 1, 1, 1)
    capacities = set()
    for length in range(1, 40 * GRANULE):
        cache.fit(length)
        assert cache.capacity >= length
        assert cache.capacity % GRANULE == 0
        assert cache.keys()[0].shape[2] == cache.capacity
        capacities.add(cache.capacity)
    assert len(capacities) <= 20
    assert cache.capacity <= 1.25 * 40 * GRANULE + GRANULE


def test_reserving_less_changes_nothing() -> None:
    cache = SlotCache(1, 1, 1, 1)
    before = cache.keys()[0]
    cache.fit(GRANULE)
    assert cache.keys()[0] is not before
    assert np.shares_memory(cache.keys()[0], before)


def test_leading_rows_are_views_in_one_piece() -> None:
    cache = SlotCache(2, 4, 3, 4)
    for array in (*cache.keys(slice(0, 2)), *cache.values(slice(0, 2))):
        assert array.base is not None
        assert array.flags.c_contiguous
    assert np.shares_memory(cache.keys(slice(0, 2))[0], cache.keys()[0])


@pytest.mark.parametrize("length", [1, 5])
def test_moving_a_row_copies_its_first_positions_only(length: int) -> None:
    cache = SlotCache(2, 3, 3, 4)
    k, v = block(3, 5, 0), block(3, 5, 1)
    cache.write(ALL, 0, k, v)
    cache.move(source=2, target=0, length=length)
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[0, :, :length], written[2, :, :length])
        np.testing.assert_array_equal(found[0, :, length:5], written[0, :, length:])
        np.testing.assert_array_equal(found[1:, :, :5], written[1:])


# --- the past of a flow stream ---


def frames(count: int, seed: int) -> list[Float]:
    """Keys or values of `count` frames for 2 layers, 2 rows, 3 heads and 4 channels."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((count, 2, 3, 4)).astype(np.float32) for _ in range(2)]


def test_an_empty_past_shows_one_frame_of_zeros() -> None:
    past = Past(2, 2, 3, 4)
    assert past.length == 0
    assert past.nbytes == 0
    for array in (*past.keys(), *past.values()):
        assert array.shape == (1, 2, 3, 4)
        assert not array.any()


def test_frames_are_read_as_they_were_added_also_beyond_what_was_reserved() -> None:
    past = Past(2, 2, 3, 4)
    keys: list[list[Float]] = []
    values: list[list[Float]] = []
    for start in range(0, 3 * RESERVED, 150):
        keys.append(frames(150, start))
        values.append(frames(150, start + 1))
        past.append(keys[-1], values[-1])
        assert past.length == start + 150
    for layer in range(2):
        np.testing.assert_array_equal(past.keys()[layer], np.concatenate([part[layer] for part in keys]))
        np.testing.assert_array_equal(past.values()[layer], np.concatenate([part[layer] for part in values]))
    assert past.nbytes == sum(array.nbytes for array in (*past.keys(), *past.values()))


def test_the_past_is_read_in_one_piece_without_copying() -> None:
    past = Past(2, 2, 3, 4)
    past.append(frames(5, 0), frames(5, 1))
    for first, second in zip([*past.keys(), *past.values()], [*past.keys(), *past.values()], strict=True):
        assert np.shares_memory(first, second)
        assert first.flags.c_contiguous


def test_adding_does_not_move_what_lies_within_the_reserve() -> None:
    past = Past(2, 2, 3, 4)
    past.append(frames(5, 0), frames(5, 1))
    before = past.keys()[0]
    past.append(frames(RESERVED - 5, 2), frames(RESERVED - 5, 3))
    assert np.shares_memory(before, past.keys()[0])


def test_a_copy_of_a_past_is_independent() -> None:
    past = Past(2, 2, 3, 4)
    keys, values = frames(5, 0), frames(5, 1)
    past.append(keys, values)
    twin = past.copy()
    past.append(frames(3, 2), frames(3, 3))
    twin.append(frames(1, 4), frames(1, 5))
    assert (past.length, twin.length) == (8, 6)
    for layer in range(2):
        np.testing.assert_array_equal(twin.keys()[layer][:5], keys[layer])
        np.testing.assert_array_equal(twin.values()[layer][:5], values[layer])
        np.testing.assert_array_equal(past.keys()[layer][5:], frames(3, 2)[layer])
        np.testing.assert_array_equal(twin.keys()[layer][5:], frames(1, 4)[layer])
