"""Stages of the vocoder and of whole runs for versions whose vocoder upstream runs again on all frames so far."""

from __future__ import annotations

import numpy as np

from cosyserve_build.noise import vocoder_draws
from cosyserve_build.recorded import RecordedSet
from cosyserve_build.stages.common import Produced, offline


def hift(data: RecordedSet) -> Produced:
    """Produce `hift.npz`."""
    recorded, hift = data.vectors["hift"], data.hift
    phases, _ = vocoder_draws(data.bundle.config)
    yield "rand_ini", phases[None]
    yield "noise", hift.noise(recorded["noise"].shape[1])

    mel = recorded["mel"]
    yield "f0", hift.f0(mel)
    yield "source", hift.source(recorded["f0"], recorded["noise"])
    yield "wav", hift.wave(mel, recorded["source"])
    known = mel.shape[2] - hift.config.f0_reach[1]
    yield "f0_nonfinal", hift.f0(mel)[:, :known]
    yield "source_nonfinal", hift.source(recorded["f0_nonfinal"], recorded["noise"])
    yield "wav_nonfinal", hift.wave(mel, recorded["source_nonfinal"], final=False)

    calls = sum(key.endswith("_wav_raw") for key in recorded)
    sent = 0
    for call in range(calls):
        last, source = call == calls - 1, recorded[f"stream{call}_source"]
        known = source.shape[2] // hift.config.frame
        mel = recorded["stream_mel"][:, :, : known if last else known + hift.config.f0_reach[1]]
        wave = hift.wave(mel, source, final=last)
        yield f"stream{call}_source", hift.source(hift.f0(mel)[:, :known], recorded["noise"])
        yield f"stream{call}_wav_raw", wave
        yield f"stream{call}_wav", wave[:, sent:]
        sent = wave.shape[1]


def e2e(data: RecordedSet) -> Produced:
    """Produce `e2e.npz`."""
    yield from offline(data)
    recorded, flow, hift = data.vectors["e2e"], data.flow, data.hift
    calls = data.cases["e2e"]["stream"]
    # Earlier frames never change, so the last call's source begins with the source of each earlier call.
    source = recorded[f"stream{len(calls) - 1}_source"]
    mel = recorded["stream0_mel"][:, :, :0]
    sent = 0
    for index, call in enumerate(calls):
        tokens, final = recorded["tokens"][: call["n_tokens"]], call["finalize"]
        run = flow.run(tokens, streaming=call["flow_streaming"], finalize=final)
        yield f"stream{index}_mel", run.mel[:, :, flow.config.ratio * call["token_offset"] :]

        mel = np.concatenate([mel, recorded[f"stream{index}_mel"]], axis=2)
        known = mel.shape[2] - (0 if final else hift.config.f0_reach[1])
        yield f"stream{index}_source", hift.source(hift.f0(mel)[:, :known])
        wave = hift.wave(mel, source[:, :, : known * hift.config.frame], final=final)
        yield f"stream{index}_pcm", wave[:, sent:]
        sent = wave.shape[1]
    yield "tokens", np.asarray(data.greedy[0], np.int32)
