"""Make the demo voice, from the corpus to the shipped archive."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cosyserve.config import LlmConfig, ModelConfig, UNetFlowConfig, expect
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.demo_voice import acoustics, bundle, corpus, language_model, listeners, vocoder
from cosyserve_build.demo_voice.packing import pack
from cosyserve_build.demo_voice.source import SPEAKERS, Recording
from cosyserve_build.folder import replaced
from cosyserve_build.prepare import prepare

_WAVES = 2_000  # utterances of each speaker that train the vocoder
_SPOKEN = 2_500  # those that train the flow
_HEARD = 4_000  # those that train the speech tokenizer
_SHARES = {"slt": 0.65, "rms": 0.35}
"""Share of each speaker in the language model's sequences of several utterances."""


@dataclass(frozen=True)
class Making:
    """Stages of the demo voice. Each is trained on first access, or read if a checkpoint exists.

    Attributes:
        work: folder for corpus and checkpoints; existing ones are reused.
    """

    work: Path

    @property
    def _checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @cached_property
    def frame(self) -> tuple[ModelConfig, Tokenizer]:
        """Sizes and text tokenizer, from the bundle without networks in the folder ``frame``."""
        folder = self.work / "frame"
        if not folder.is_dir():  # kept, because the language model depends on the tokenizer of its training
            with replaced(folder) as new:
                bundle.write_frame(new)
        return bundle.read_frame(folder)

    @cached_property
    def speaker(self) -> listeners.SpeakerModel:
        """Speaker model."""
        return listeners.train_speaker(self._checkpoints, [self._said(one.name, corpus.SHARD) for one in SPEAKERS])

    @cached_property
    def tokenizer(self) -> listeners.SpeechTokenizer:
        """Speech tokenizer."""
        return listeners.train_tokenizer(self._checkpoints, self._everybody(_HEARD))

    @cached_property
    def pitch(self) -> nn.Module:
        """Pitch predictor."""
        return vocoder.train_pitch(self._checkpoints, self.frame[0].hift, self._everybody(_WAVES))

    @cached_property
    def vocoder(self) -> vocoder.Vocoder:
        """Vocoder without its pitch predictor."""
        return vocoder.train_vocoder(self._checkpoints, self.frame[0].hift, self._everybody(_WAVES))

    @cached_property
    def language(self) -> language_model.LanguageModel:
        """Language model."""
        config, text = self.frame
        speakers = [
            ([language_model.Said.of(text, line, tokens) for line, tokens in self._read(name)], share)
            for name, share in _SHARES.items()
        ]
        sizes = expect(LlmConfig, config.llm)
        sequences = language_model.Sequences(sizes, speakers)
        return language_model.train_language_model(self._checkpoints, sizes, sequences)

    @cached_property
    def flow(self) -> acoustics.Flow:
        """Flow."""
        config, _ = self.frame
        speakers = [
            [
                acoustics.Talk.of(part, self._embedding(part[0]))
                for part in acoustics.in_a_row(self._said(one.name, _SPOKEN))
            ]
            for one in SPEAKERS
        ]
        talks = acoustics.Talks([talk for speaker in speakers for talk in speaker], config.flow.lookahead)
        return acoustics.train_flow(self._checkpoints, expect(UNetFlowConfig, config.flow), talks)

    def write(self, out: Path) -> None:
        """Write the finished bundle to `out` and replace what is there."""
        language = self.language
        with replaced(out) as folder:
            shutil.copytree(self.work / "frame", folder, dirs_exist_ok=True)
            bundle.write_networks(
                folder,
                language=language,
                flow=self.flow,
                vocoder=self.vocoder,
                pitch=self.pitch,
                tokenizer=self.tokenizer,
                speaker=self.speaker,
            )
            bundle.write_voices(folder)

    def _said(self, speaker: str, count: int) -> list[Recording]:
        return corpus.read(self.work / "corpus", speaker, count)

    def _read(self, speaker: str) -> list[tuple[str, NDArray[np.int64]]]:
        return corpus.read_tokens(self.work / "corpus", speaker, corpus.SAID[speaker])

    def _everybody(self, count: int) -> list[Recording]:
        return [utterance for one in SPEAKERS for utterance in self._said(one.name, count)]

    def _embedding(self, utterance: Recording) -> NDArray[np.float32]:
        with torch.no_grad():
            energies = torch.from_numpy(listeners.energies(listeners.heard(utterance)))[None]
            embedding: NDArray[np.float32] = self.speaker(energies)[0].numpy()
        return embedding


STAGES: dict[str, Callable[[Making], object]] = {
    "speaker": lambda making: making.speaker,
    "tokenizer": lambda making: making.tokenizer,
    "pitch": lambda making: making.pitch,
    "vocoder": lambda making: making.vocoder,
    "language": lambda making: making.language,
    "flow": lambda making: making.flow,
}
"""Stages that can be trained separately, after the corpus is built."""


def make(work: Path, archive: Path, report: Callable[[str], None], stages: list[str]) -> None:
    """Build the corpus, then train `stages`, or train all and write the archive.

    Args:
        work: see `Making`; bundle and prepared weights are written there too.
        archive: file to write.
        report: called with a line of text after each finished part.
        stages: names in `STAGES`; empty for all of them and the archive.
    """
    corpus.build(work / "corpus", report)
    making = Making(work)
    for stage in stages or STAGES:
        STAGES[stage](making)
        report(f"{stage}: trained")
    if not stages:
        making.write(work / "bundle")
        prepare(work / "bundle", work / "weights", report)
        pack(work / "bundle", work / "weights", archive)
        report(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")
