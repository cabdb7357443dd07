"""KV caches: of the language model's slots, and of a flow stream."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.flow.kv_cache import ALIGNMENT as FRAMES
from cosyserve.flow.kv_cache import RESERVED, FlowKVCache, collate
from cosyserve.llm.kv_cache import ALIGNMENT, KVCache

Float = NDArray[np.float32]
ALL = slice(None)


def block(rows: int, length: int, seed: int) -> list[Float]:
    """Keys or values of 2 layers with 3 heads of 4 channels."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((rows, 3, length, 4)).astype(np.float32) for _ in range(2)]


def test_what_was_written_is_read_and_the_rest_is_zero() -> None:
    cache = KVCache(layers=2, rows=3, heads=3, dim=4)
    k, v = block(2, 5, 0), block(2, 5, 1)
    cache.write(slice(1, 3), 7, k, v)
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[1:, :, 7:12], written)
        assert not found[0].any()
        assert not found[:, :, :7].any()
        assert not found[:, :, 12:].any()


def test_growing_keeps_what_was_written() -> None:
    cache = KVCache(2, 2, 3, 4)
    written_k: list[list[Float]] = []
    written_v: list[list[Float]] = []
    for start in range(0, 5 * ALIGNMENT, 10):
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
    cache = KVCache(2, 3, 3, 4)
    k, v = block(1, 5, 0), block(1, 5, 1)
    cache.fit(40 * ALIGNMENT)
    cache.write(slice(1, 2), 0, *(block(1, 40 * ALIGNMENT, seed) for seed in (2, 3)))
    cache.write(slice(0, 1), 0, k, v)
    cache.fit(6)
    assert cache.capacity >= 40 * ALIGNMENT
    cache.release(1)
    cache.fit(6)
    assert cache.capacity == ALIGNMENT
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[:1, :, :5], written)


def test_appending_puts_each_row_at_its_own_position() -> None:
    cache = KVCache(2, 3, 3, 4)
    k, v = block(2, 1, 0), block(2, 1, 1)
    cache.append(np.array([4, 7]), k, v)
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[0, :, 4], written[0, :, 0])
        np.testing.assert_array_equal(found[1, :, 7], written[1, :, 0])
        assert np.count_nonzero(found) == written.size


def test_an_erased_row_is_zero_and_the_others_are_not() -> None:
    cache = KVCache(2, 3, 3, 4)
    cache.write(ALL, 0, block(3, 5, 0), [np.full_like(part, np.nan) for part in block(3, 5, 1)])
    cache.append(np.array([5, 5]), block(2, 1, 2), block(2, 1, 3))
    cache.release(1)
    for array in (*cache.keys(), *cache.values()):
        assert not array[1].any()
        assert array[[0, 2], :, :5].any()


def test_capacity_is_a_multiple_of_the_granule_and_grows_seldom() -> None:
    cache = KVCache(1, 1, 1, 1)
    capacities = set()
    for length in range(1, 40 * ALIGNMENT):
        cache.fit(length)
        assert cache.capacity >= length
        assert cache.capacity % ALIGNMENT == 0
        assert cache.keys()[0].shape[2] == cache.capacity
        capacities.add(cache.capacity)
    assert len(capacities) <= 20
    assert cache.capacity <= 1.25 * 40 * ALIGNMENT + ALIGNMENT


def test_reserving_less_changes_nothing() -> None:
    cache = KVCache(1, 1, 1, 1)
    before = cache.keys()[0]
    cache.fit(ALIGNMENT)
    assert cache.keys()[0] is not before
    assert np.shares_memory(cache.keys()[0], before)


def test_leading_rows_are_views_in_one_piece() -> None:
    cache = KVCache(2, 4, 3, 4)
    for array in (*cache.keys(slice(0, 2)), *cache.values(slice(0, 2))):
        assert array.base is not None
        assert array.flags.c_contiguous
    assert np.shares_memory(cache.keys(slice(0, 2))[0], cache.keys()[0])


@pytest.mark.parametrize("length", [1, 5])
def test_moving_a_row_copies_its_first_positions_only(length: int) -> None:
    cache = KVCache(2, 3, 3, 4)
    k, v = block(3, 5, 0), block(3, 5, 1)
    cache.write(ALL, 0, k, v)
    cache.move(source=2, target=0, length=length)
    for found, written in zip([*cache.keys(), *cache.values()], [*k, *v], strict=True):
        np.testing.assert_array_equal(found[0, :, :length], written[2, :, :length])
        np.testing.assert_array_equal(found[0, :, length:5], written[0, :, length:])
        np.testing.assert_array_equal(found[1:, :, :5], written[1:])


# --- the past of a flow stream ---


def frames(count: int, seed: int) -> list[Float]:
    """Keys, then values, of `count` frames for 2 layers, 2 rows, 3 heads and 4 channels."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((count, 2, 3, 4)).astype(np.float32) for _ in range(4)]


def grown(*parts: list[Float], window: int = 0) -> FlowKVCache:
    past = FlowKVCache(2, 3, 4, window)
    for part in parts:
        past.append(part)
    return past


def joined(parts: list[list[Float]]) -> Float:
    return np.stack([np.concatenate(layer) for layer in zip(*parts, strict=True)])


def test_an_empty_past_shows_one_granule_of_zeros() -> None:
    past = FlowKVCache(2, 3, 4)
    assert (past.length, past.padded_length, past.nbytes) == (0, FRAMES, 0)
    assert past.layers().shape == (4, FRAMES, 2, 3, 4)
    assert not past.layers().any()


@pytest.mark.parametrize(("length", "granules"), [(1, 1), (FRAMES, 1), (FRAMES + 1, 2), (RESERVED, RESERVED // FRAMES)])
def test_graphs_read_whole_granules_with_zeros_at_the_end(length: int, granules: int) -> None:
    new = frames(length, 0)
    past = grown(new)
    assert past.padded_length == granules * FRAMES
    assert past.layers().shape == (4, past.padded_length, 2, 3, 4)
    np.testing.assert_array_equal(past.layers()[:, :length], new)
    assert not past.layers()[:, length:].any()
    assert past.nbytes == sum(array.nbytes for array in new)


def test_frames_are_read_as_they_were_added_also_beyond_what_was_reserved() -> None:
    past, parts = FlowKVCache(2, 3, 4), []
    for start in range(0, 3 * RESERVED, 150):
        parts.append(frames(150, start))
        past.append(parts[-1])
        assert past.length == start + 150
    np.testing.assert_array_equal(past.layers()[:, : past.length], joined(parts))
    assert not past.layers()[:, past.length :].any()
    assert past.nbytes == joined(parts).nbytes


def test_more_frames_at_once_than_reserved_fit() -> None:
    parts = [frames(5, 0), frames(3 * RESERVED + 1, 1)]
    past = grown(*parts)
    np.testing.assert_array_equal(past.layers()[:, : past.length], joined(parts))


def test_the_past_is_read_without_copying_and_does_not_move_within_the_reserve() -> None:
    past = grown(frames(5, 0))
    before = past.layers()
    assert before[0].flags.c_contiguous
    past.append(frames(RESERVED - 5, 1))
    assert np.shares_memory(before, past.layers())


def test_a_window_keeps_the_newest_frames() -> None:
    parts = [frames(10, seed) for seed in range(7)]
    past = FlowKVCache(2, 3, 4, window=33)
    for count, part in enumerate(parts, 1):
        past.append(part)
        kept = min(10 * count, 33)
        assert past.length == kept
        np.testing.assert_array_equal(past.layers()[:, :kept], joined(parts[:count])[:, -kept:])
        assert not past.layers()[:, kept:].any()
        assert past.nbytes == joined(parts[:count])[:, -kept:].nbytes


def test_a_window_shorter_than_what_is_added_keeps_just_that() -> None:
    past = grown(frames(50, 0), frames(25, 1), window=20)
    assert past.length == 25
    np.testing.assert_array_equal(past.layers()[:, :25], frames(25, 1))
    assert not past.layers()[:, 25:].any()


def test_streams_are_gathered_with_their_conditional_rows_first() -> None:
    pasts = [grown(frames(length, length)) for length in (5, FRAMES + 1, 2)]
    batch, memory = collate(pasts, None)
    assert batch.shape == (4, 2 * FRAMES, 6, 3, 4)
    for stream, past in enumerate(pasts):
        for row in range(2):
            found = batch[:, :, 3 * row + stream]
            np.testing.assert_array_equal(found[:, : past.padded_length], past.layers()[:, :, row])
            assert not found[:, past.padded_length :].any()
    assert np.shares_memory(batch, memory)


def test_the_memory_of_a_gathering_is_used_again() -> None:
    first = [grown(frames(length, length)) for length in (5, FRAMES + 1)]
    second = [grown(frames(length, 9 * length)) for length in (5, FRAMES + 1)]
    _, memory = collate(first, None)
    batch, again = collate(second, memory)
    assert again is memory
    np.testing.assert_array_equal(batch, collate(second, None)[0])


def test_a_stream_alone_is_not_copied() -> None:
    past = grown(frames(5, 0))
    batch, _ = collate([past], None)
    assert np.shares_memory(batch, past.layers())
    np.testing.assert_array_equal(batch, past.layers())
