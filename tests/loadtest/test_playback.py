"""Playback of chunks with given arrival times."""

from __future__ import annotations

import numpy as np
import pytest

from cosyserve_client.bench.playback import AUDIBLE, Playback

RATE = 1000


def tone(samples: int) -> np.ndarray:
    return np.full(samples, 1000, np.int16)


def silence(samples: int) -> np.ndarray:
    return np.full(samples, AUDIBLE - 1, np.int16)


def played(*chunks: tuple[float, np.ndarray]) -> Playback:
    playback = Playback(RATE)
    for arrival, pcm in chunks:
        playback.add(pcm, arrival)
    return playback


def test_chunks_that_come_before_the_audio_runs_out_leave_no_gap() -> None:
    playback = played((0.3, tone(100)), (0.35, tone(100)), (0.5, tone(100)))
    assert playback.first_audio == 0.3
    assert playback.worst_gap == 0
    assert playback.seconds == pytest.approx(0.3)


def test_a_chunk_that_comes_late_leaves_a_gap() -> None:
    assert played((0.3, tone(100)), (0.45, tone(100))).worst_gap == pytest.approx(0.05)


def test_a_gap_shifts_all_that_follows() -> None:
    # Runs out at 0.1, goes on at 0.3, runs out at 0.4: the third chunk is late for the schedule, not for the player.
    playback = played((0.0, tone(100)), (0.3, tone(100)), (0.38, tone(100)))
    assert playback.worst_gap == pytest.approx(0.2)


def test_the_worst_of_several_gaps_counts() -> None:
    playback = played((0.0, tone(100)), (0.15, tone(100)), (0.55, tone(100)), (0.66, tone(100)))
    assert playback.worst_gap == pytest.approx(0.3)


def test_waiting_for_the_first_audio_is_no_gap() -> None:
    assert played((9.0, tone(100))).worst_gap == 0


def test_responses_without_samples_change_nothing() -> None:
    playback = played((0.1, tone(0)), (0.3, tone(100)), (5.0, tone(0)))
    assert playback.first_audio == 0.3
    assert playback.worst_gap == 0
    assert playback.chunks == [(0.3, 100)]


def test_leading_silence_is_waiting() -> None:
    playback = played((0.3, np.concatenate([silence(40), tone(60)])))
    assert playback.first_audible == pytest.approx(0.34)


def test_an_early_chunk_is_heard_when_its_turn_comes() -> None:
    # 0.1 s of silence must be played first, although the tone is there long before.
    playback = played((0.3, silence(100)), (0.31, tone(100)))
    assert playback.first_audible == pytest.approx(0.4)


def test_a_late_chunk_is_heard_when_it_is_there() -> None:
    playback = played((0.3, silence(100)), (0.7, np.concatenate([silence(10), tone(10)])))
    assert playback.first_audible == pytest.approx(0.71)


@pytest.mark.parametrize("sample", [AUDIBLE, -AUDIBLE, 32767, -32768])
def test_either_sign_is_heard(sample: int) -> None:
    assert played((0.0, np.array([0, sample], np.int16))).first_audible == pytest.approx(0.001)


def test_silence_is_never_heard() -> None:
    playback = played((0.0, silence(100)), (0.1, -silence(100)))
    assert playback.first_audible is None
