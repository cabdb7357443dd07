"""Random-weight CosyVoice bundles in the official layout, for tests, benchmarks and the demo.

The sound means nothing, but every stage behaves: sampling is diverse, utterances end, the pitch is voiced, the
waveform is neither silent nor clipped. The same seed gives the same bundle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cosyserve.errors import Unsupported
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.bundles.bundle import read
from cosyserve_build.bundles.layout import recipe_of
from cosyserve_build.bundles.parts import QWEN
from cosyserve_build.bundles.shapes import expected_shapes
from cosyserve_build.synth_graphs import write_campplus, write_speech_tokenizer
from cosyserve_build.synth_recipe import PROMPT_TEXT, YAMLS, Size, sizes, write_recipe
from cosyserve_build.synth_weights import hift, random_state, split_weight_norm, voice, write_llm, write_transformer
from cosyserve_build.whisper import whisper_tokenizer

VOICE = "demo"


def synth_bundle(out: Path, version: int, size: Size, seed: int) -> None:
    """Write a random bundle that `cosyserve_build.bundles.bundle.read` accepts.

    Args:
        out: folder to fill; made when absent.
        version: CosyVoice generation.
        size: ``tiny`` (10 MB), ``small`` or ``full`` (the official dimensions, 2.5 GB).
        seed: of all weights.

    Raises:
        Unsupported: a version that cannot be made.
    """
    if version not in YAMLS:
        known = ", ".join(map(str, YAMLS))
        raise Unsupported(f"synth-bundle: CosyVoice version {version} is not supported yet, only {known}")
    write_recipe(out, version, sizes(version, size))
    recipe = recipe_of(out)
    config = recipe.config(out)
    tokenizer = whisper_tokenizer() if version == 1 else Tokenizer.from_bundle(out / QWEN, version)
    rng = np.random.Generator(np.random.Philox(seed))
    with torch.no_grad():
        (write_transformer if version == 1 else write_llm)(out, config, rng)
        torch.save(random_state(expected_shapes(config, "flow"), rng), out / "flow.pt")
        torch.save(split_weight_norm(hift(config, rng)), out / "hift.pt")
    write_campplus(out / "campplus.onnx", config.flow.speaker, rng)
    # At 50 tokens a second there is one halving of time less, and few enough digits for 4,096 ids.
    digits, halvings = (7, 1) if version == 1 else (8, 2)
    write_speech_tokenizer(out / recipe.speech_tokenizer, rng, digits, halvings)
    torch.save({VOICE: voice(config, tokenizer.encode(PROMPT_TEXT), rng)}, out / "spk2info.pt")
    read(out)
