"""Stages of the vocoder and of whole runs for versions where upstream cross-fades overlapping vocoder windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cosyserve_build.probes import Join
from cosyserve_build.recorded import RecordedSet
from cosyserve_build.stages.common import Produced, offline


def hift(data: RecordedSet) -> Produced:
    recorded, hift = data.vectors["hift"], data.hift
    yield "f0", hift.f0(recorded["mel"])
    yield "source", hift.source(recorded["f0"], recorded["noise"])
    yield "wav", hift.wave(recorded["mel"], recorded["source"])

    held = len(recorded["speech_window"]) // 2
    yield "speech_window", np.hamming(2 * held).astype(np.float32)
    mels = recorded["stream_mel"]
    lengths = [recorded[f"stream{i}_f0"].shape[1] for i in range(sum(k.endswith("_wav_raw") for k in recorded))]
    # Every window except the first starts with the last frames of the previous one.
    cached = (sum(lengths) - mels.shape[2]) // max(1, len(lengths) - 1)
    join = Join(held)
    start = 0
    for index, frames in enumerate(lengths):
        mel = mels[:, :, start : start + frames]
        wave = hift.wave(mel, recorded[f"stream{index}_source"])
        yield f"stream{index}_f0", hift.f0(mel)
        yield f"stream{index}_wav_raw", wave
        yield f"stream{index}_wav", join(wave, last=index == len(lengths) - 1)
        start += frames - cached


def e2e(data: RecordedSet) -> Produced:
    yield from offline(data)
    yield from _e2e_stream(data, data.cases["e2e"]["stream"])
    yield "tokens", np.asarray(data.greedy[0], np.int32)


def _e2e_stream(data: RecordedSet, calls: Sequence[dict[str, Any]]) -> Produced:
    """Reproduce upstream's streaming: a call runs the flow on the prefix, and the vocoder on a window with a cache."""
    recorded, flow, hift = data.vectors["e2e"], data.flow, data.hift
    held = calls[0]["hift_wav_samples"] - calls[0]["emitted_samples"]
    join = Join(held)
    window = recorded["stream0_mel"][:, :, :0]
    before = np.zeros((1, 1, 0), np.float32)
    for index, call in enumerate(calls):
        tokens = recorded["tokens"][: call["n_tokens"]]
        run = flow.run(tokens, streaming=call["flow_streaming"], finalize=call["finalize"])
        yield f"stream{index}_mel", run.mel[:, :, flow.config.ratio * call["token_offset"] :]

        cached = call["hift_mel_frames"] - call["new_mel_frames"]
        window = np.concatenate([window[:, :, window.shape[2] - cached :], recorded[f"stream{index}_mel"]], axis=2)
        head = before[:, :, max(0, before.shape[2] - held) :]
        yield f"stream{index}_source", np.concatenate([head, hift.source(hift.f0(window))[:, :, head.shape[2] :]], 2)

        before = recorded[f"stream{index}_source"]
        yield f"stream{index}_pcm", join(hift.wave(window, before), last=call["finalize"])
