"""Write CosyVoice bundles with random weights in the official layout, for tests and benchmarks.

The audio is not speech, but every stage behaves realistically: sampling is diverse, utterances end, the pitch is
voiced, the waveform is neither silent nor clipped. The same seed gives the same bundle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cosyserve import versions
from cosyserve.lazy import resolve
from cosyserve_build.bundles.bundle import read
from cosyserve_build.bundles.layout import read_config, read_tokenizer
from cosyserve_build.bundles.shapes import expected_shapes
from cosyserve_build.synth_graphs import write_campplus, write_speech_tokenizer
from cosyserve_build.synth_recipe import PROMPT_TEXT, Size, random_bundle, write_recipe
from cosyserve_build.synth_weights import hift, random_state, split_weight_norm, voice

VOICE = "demo"


def synth_bundle(out: Path, version: int, size: Size, seed: int) -> None:
    """Write a random bundle that `cosyserve_build.bundles.bundle.read` can read.

    Args:
        out: folder to fill; created if absent.
        version: CosyVoice generation.
        size: ``tiny`` (10 MB), ``small`` or ``full`` (the official dimensions, 2.5 GB).
        seed: of the random weights.

    Raises:
        WeightsError: the version is unknown.
    """
    described = versions.get(version)
    made = random_bundle(described)
    write_recipe(out, version, made.sizes[size])
    config = read_config(out, described)
    tokenizer = read_tokenizer(out, described)
    rng = np.random.Generator(np.random.Philox(seed))
    with torch.no_grad():
        resolve(described.llm.random)(out, config, rng)
        torch.save(random_state(expected_shapes(config, "flow"), rng), out / "flow.pt")
        torch.save(split_weight_norm(hift(config, rng)), out / "hift.pt")
    write_campplus(out / "campplus.onnx", config.flow.speaker, rng)
    write_speech_tokenizer(out / described.bundle.speech_tokenizer, rng, made.digits, made.halvings)
    torch.save({VOICE: voice(config, tokenizer.encode(PROMPT_TEXT), rng)}, out / "spk2info.pt")
    read(out)
