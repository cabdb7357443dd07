"""CosyVoice 1's flow, window by window, over fake networks whose outputs encode their inputs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cosyserve.config import WindowFlowConfig
from cosyserve.contracts import Tensors
from cosyserve.errors import InvalidInput
from cosyserve.flow.stream import FlowVoice
from cosyserve.flow.window_sequences import WindowFlowFactory
from cosyserve.flow.window_stream import WindowNetworks, WindowStream, faded, seeded_noise, stretching
from cosyserve.limits import MAX_NOISE_FRAMES
from cosyserve.runtimes.graph import Arrays, Outputs
from cosyserve.scheduler import run_alone

CONFIG = WindowFlowConfig(4096, 8, 8, 2, 16, 1, 4, 50, 22050 / 256, 4, 6, (8, 8), 2, 4, 1, 1, 0.7)
PROMPT, PROMPT_FRAMES = 30, 50
VOICE = FlowVoice(np.arange(PROMPT, dtype=np.int32), np.full((PROMPT_FRAMES, 4), 7, np.float32), np.ones(6, np.float32))
TOKENS = np.arange(1000, 1263, dtype=np.int32)
SHARED, HOP = 34, 172  # frames


class Recorder:
    """Networks that record their inputs: mu encodes the tokens, and the velocity leads from the noise to mu."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.started: list[dict[str, NDArray[Any]]] = []

    def encode(self, inputs: Arrays) -> Outputs:
        tokens, stretch = np.asarray(inputs["tokens"]), np.asarray(inputs["stretch"])
        self.tokens.append(tokens[0, PROMPT:].tolist())
        # The result for a token depends on the window, as with attention.
        values = tokens.astype(np.float32) + 0.25 * len(self.tokens)
        mu = np.repeat((stretch @ values[:, :, None]).transpose(0, 2, 1), CONFIG.mels, axis=1)
        return Outputs(mu=mu.astype(np.float32))

    def estimate(self, inputs: Arrays) -> Outputs:
        given = {name: np.asarray(value) for name, value in inputs.items()}
        if given["t"][0] == 0:
            self.started.append(given)
        # Constant over all steps, it leads from the noise to mu, which represents the mel.
        return Outputs(velocity=given["mu"] - self.started[-1]["x"])

    @property
    def networks(self) -> WindowNetworks:
        return WindowNetworks(CONFIG, self.encode, self.estimate)


def stream(recorder: Recorder, *, seed: int = 3, full: bool = False) -> WindowStream:
    return WindowStream(recorder.networks, VOICE, seeded_noise(CONFIG.mels, seed), full=full)


def test_windows_overlap_and_the_last_takes_the_rest() -> None:
    recorder = Recorder()
    mel = stream(recorder).step(TOKENS, final=True)
    assert [(window[0], len(window)) for window in recorder.tokens] == [(1000, 120), (1100, 120), (1200, 63)]
    assert mel.shape == (4, 2 * HOP + CONFIG.frames(63))


@pytest.mark.parametrize("cut", [1, 7, 119, 120, 121, 220])
def test_how_tokens_arrive_does_not_matter(cut: int) -> None:
    whole = stream(Recorder()).step(TOKENS, final=True)
    parts = stream(Recorder())
    pieces = [parts.step(TOKENS[start : start + cut], final=False) for start in range(0, len(TOKENS), cut)]
    pieces.append(parts.step(TOKENS[:0], final=True))
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_nothing_is_said_before_a_window_is_full() -> None:
    parts = stream(Recorder())
    assert parts.step(TOKENS[:119], final=False).shape[1] == 0
    assert parts.step(TOKENS[119:120], final=False).shape[1] == HOP


def test_prompt_and_shared_frames_start_from_what_the_window_before_used() -> None:
    recorder = Recorder()
    stream(recorder).step(TOKENS, final=True)
    for before, after in pairwise(recorder.started):
        for name in ("x", "mu"):
            kept = [before[name][..., :PROMPT_FRAMES], before[name][..., -SHARED:]]
            np.testing.assert_array_equal(after[name][..., : PROMPT_FRAMES + SHARED], np.concatenate(kept, axis=-1))
        assert not np.array_equal(before["x"][..., -20:], after["x"][..., -20:])


def test_the_prompts_mel_conditions_the_prompt_alone() -> None:
    recorder = Recorder()
    stream(recorder).step(TOKENS, final=True)
    for started in recorder.started:
        assert np.all(started["cond"][..., :PROMPT_FRAMES] == 7)
        assert not started["cond"][..., PROMPT_FRAMES:].any()


def test_full_attention_is_one_window() -> None:
    recorder = Recorder()
    whole = stream(recorder, full=True)
    assert whole.step(TOKENS, final=False).shape[1] == 0
    assert whole.step(TOKENS[:0], final=True).shape[1] == CONFIG.frames(len(TOKENS))
    assert [len(window) for window in recorder.tokens] == [len(TOKENS)]


def test_a_cross_fade_neither_swells_nor_dips() -> None:
    old, new = np.full((4, SHARED), 5, np.float32), np.full((4, 100), 5, np.float32)
    np.testing.assert_allclose(faded(old, new), new, rtol=1e-6)
    rise = faded(np.zeros((1, SHARED), np.float32), np.ones((1, SHARED), np.float32))[0]
    assert np.all(np.diff(rise) > 0)
    assert rise[0] < 0.01
    assert rise[-1] > 0.99


def test_the_seed_decides_the_noise() -> None:
    same, again, other = (seeded_noise(4, seed)(90) for seed in (5, 5, 6))
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)
    assert same.std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("tokens", "parts"), [(20, [20]), (40, [40]), (41, [20, 1, 20]), (120, [20, 80, 20])])
def test_long_windows_are_stretched_in_three_parts(tokens: int, parts: list[int]) -> None:
    weights = stretching(CONFIG, PROMPT, PROMPT_FRAMES, tokens)
    assert weights.shape == (PROMPT_FRAMES + CONFIG.frames(tokens), PROMPT + tokens)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    bounds = np.cumsum([0, PROMPT, *parts])
    for start, stop in pairwise(bounds):
        used = weights[:, start:stop].any(axis=1)
        assert not weights[used][:, :start].any()
        assert not weights[used][:, stop:].any()


def test_a_segment_longer_than_a_window_may_be_is_refused() -> None:
    tokens = np.zeros(MAX_NOISE_FRAMES, np.int32)
    with pytest.raises(InvalidInput, match="text"):
        stream(Recorder(), full=True).step(tokens, final=True)


def test_a_sequence_draws_anew_for_each_segment() -> None:
    recorder = Recorder()
    factory = WindowFlowFactory(recorder.networks, 2**20, lambda frames: None)
    voice: Tensors = {
        "flow_prompt_tokens": VOICE.tokens,
        "prompt_mel": VOICE.mel,
        "speaker_embedding": VOICE.embedding,
    }
    sequence = factory.open(voice)
    for seed in (1, 1, 2):
        step: Tensors = {"speech_tokens": TOKENS[:50], "final": np.asarray([True]), "seed": np.asarray([seed])}
        outputs = run_alone(sequence.begin_step(step))
        assert outputs["mel"].shape == (4, CONFIG.frames(50))
    first, again, other = (started["x"] for started in recorder.started)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    sequence.release()
    assert factory.nbytes == 0
