"""Read a set of recorded tensors with the bundle that they were made from."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from cosyserve.config import LlmConfig, expect
from cosyserve.errors import BundleError
from cosyserve.flow.stream import FlowVoice
from cosyserve.text.normalize import is_raw, normalize
from cosyserve.text.split import segments
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.bundles.bundle import Bundle
from cosyserve_build.noise import vocoder_draws
from cosyserve_build.probes import Array, FlowProbe, HiftProbe, LlmProbe


class RecordedSet:
    """Files of a set, and the probes of its bundle, which are built on first access.

    Args:
        folder: the set.
        bundle: its bundle.

    Raises:
        BundleError: the set is incomplete or unreadable.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.bundle = bundle
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
            self.cases: dict[str, Any] = self.manifest["cases"]
        except (OSError, ValueError, KeyError) as problem:
            raise BundleError(f"manifest.json: unreadable: {type(problem).__name__}") from problem
        try:
            samples, self.rate = soundfile.read(folder / "prompt.wav", dtype="float32", always_2d=True)
        except (OSError, soundfile.LibsndfileError) as problem:
            raise BundleError(f"prompt.wav: unreadable: {problem}") from problem
        self.prompt: Array = samples.mean(axis=1)
        self.vectors: dict[str, dict[str, Array]] = {}
        for path in sorted((folder / "vectors").glob("*.npz")):
            try:
                with np.load(path) as archive:
                    self.vectors[path.stem] = dict(archive.items())
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
                raise BundleError(f"vectors/{path.name}: unreadable: {problem}") from problem

    @property
    def resampled_rates(self) -> list[int]:
        """List the rates of recorded waves, except the prompt file's rate."""
        return [rate for rate in (16_000, 24_000) if rate != self.rate]

    def recorded(self) -> Iterator[tuple[str, Array | None]]:
        """Yield every tensor in the files, then those that only the manifest names."""
        for stem, tensors in self.vectors.items():
            for key, value in tensors.items():
                yield f"{stem}/{key}", value
        for file, tensors in self.manifest.get("vectors", {}).items():
            stem = Path(file).stem
            for key in tensors:
                if key not in self.vectors.get(stem, {}):
                    yield f"{stem}/{key}", None

    def text(self, name: str) -> list[int]:
        """Tokenize a text of the manifest, normalised without a number grammar like the recorded one."""
        spoken = normalize(self.cases["texts"][name], lambda text: text)
        if name == "prompt_text" or is_raw(spoken):  # these texts are not split
            return self.tokenizer.encode(spoken)
        return self.tokenizer.encode(segments(spoken, lambda text: len(self.tokenizer.encode(text)))[0])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text tokenizer."""
        return self.bundle.text_tokenizer()

    @cached_property
    def llm(self) -> LlmProbe:
        """Runs of the language model."""
        return LlmProbe(expect(LlmConfig, self.bundle.config.llm), self.bundle.llm())

    @cached_property
    def flow(self) -> FlowProbe:
        """Runs of the flow with the recorded voice."""
        recorded = self.vectors["flow"]
        voice = FlowVoice(recorded["prompt_token"][0], recorded["prompt_feat"][0], recorded["spk_raw"][0])
        return FlowProbe(self.bundle.config, self.bundle.flow(), voice)

    @cached_property
    def hift(self) -> HiftProbe:
        """Runs of the vocoder."""
        config = self.bundle.config
        twister = vocoder_draws(config)[1] if config.hift.fixed_noise else None
        return HiftProbe(config.hift, self.bundle.hift(), twister)

    @cached_property
    def greedy(self) -> tuple[list[int], list[Array]]:
        """Tokens and logits of the greedy zero-shot run."""
        text = self.text("tts_text")
        return self.llm.greedy(self.llm.prompt([*self.text("prompt_text"), *text], self.prompt_speech), len(text))

    @property
    def prompt_speech(self) -> list[int]:
        """Speech tokens of the prompt."""
        return [int(token) for token in self.vectors["frontend"]["speech_token"][0]]
