"""Write the demo voice as a CosyVoice2 bundle in the official layout."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

from cosyserve.config import ModelConfig
from cosyserve.frontend import Frontend
from cosyserve.runtimes.onnx.graph import OnnxGraph
from cosyserve.text.tokenizer import Tokenizer
from cosyserve.voices import VoiceStore
from cosyserve_build.bundles.bundle import read
from cosyserve_build.bundles.layout import read_config, read_tokenizer, version_of
from cosyserve_build.demo_voice.acoustics import Flow
from cosyserve_build.demo_voice.checkpoints import write_checkpoints
from cosyserve_build.demo_voice.language_model import LanguageModel
from cosyserve_build.demo_voice.listeners import SpeakerModel, SpeechTokenizer
from cosyserve_build.demo_voice.source import SAMPLE_RATE, SPEAKERS, speak
from cosyserve_build.demo_voice.vocoder import Vocoder
from cosyserve_build.export import Spec, write_whole
from cosyserve_build.judge.sentences import SEED, TAUGHT, sentences
from cosyserve_build.synth_recipe import Dimensions, write_recipe

MERGES = 1_500  # nearly every word of the vocabulary is one text token
_NOTE = "A small English voice taught on speech of flite, made by `make demo-voice`."
PROMPT = "The next train to Boston leaves at seven thirty."
"""Sentence from which the stored voices' embeddings are computed."""

SIZES = Dimensions(
    hidden=192,
    intermediate=512,
    layers=4,
    heads=3,
    kv_heads=3,
    merges=MERGES,
    text_ids=256 + MERGES,
    vocab=0,
    encoder_width=128,
    encoder_heads=4,
    encoder_ff=256,
    encoder_blocks=1,
    channels=192,
    unet_heads=4,
    unet_head_dim=32,
    unet_blocks=1,
    mid_blocks=0,
    hift_channels=128,
    f0_channels=64,
    lookahead_channels=0,
    dit_width=0,
    dit_blocks=0,
    dit_heads=0,
    dit_head_dim=0,
)


def write_frame(out: Path) -> None:
    """Write the untrained files of the bundle: sizes and text tokenizer."""
    taught = itertools.islice(sentences(SEED), TAUGHT)
    write_recipe(out, 2, SIZES, note=_NOTE, texts=taught)


def read_frame(out: Path) -> tuple[ModelConfig, Tokenizer]:
    """Read sizes and text tokenizer that `write_frame` wrote."""
    version = version_of(out)
    return read_config(out, version), read_tokenizer(out, version)


def write_networks(
    out: Path,
    *,
    language: LanguageModel,
    flow: Flow,
    vocoder: Vocoder,
    pitch: nn.Module,
    tokenizer: SpeechTokenizer,
    speaker: SpeakerModel,
) -> None:
    """Write checkpoints and graphs with weights rounded to float16."""
    own = {**pitch.state_dict(), **vocoder.source.state_dict(), **vocoder.decoder.state_dict()}
    write_checkpoints(out, {"llm": language.states(), "flow": flow.states(), "hift": own})
    write_whole(_rounded(_tokenizer_spec(tokenizer)), out / version_of(out).bundle.speech_tokenizer)
    write_whole(_rounded(_speaker_spec(speaker)), out / "campplus.onnx")


def _tokenizer_spec(module: SpeechTokenizer) -> Spec:
    def inputs(frames: int) -> dict[str, Tensor]:
        return {"feats": torch.zeros(1, 128, frames), "feats_length": torch.tensor([frames], dtype=torch.int32)}

    axes: dict[str, dict[int, str]] = {"feats": {2: "T"}, "feats_length": {}}
    return Spec("speech_tokenizer", module, inputs, ({"frames": 100},), axes, ("indices",))


def _speaker_spec(module: SpeakerModel) -> Spec:
    def inputs(frames: int) -> dict[str, Tensor]:
        return {"input": torch.zeros(1, frames, 80)}

    return Spec("campplus", module, inputs, ({"frames": 100},), {"input": {1: "T"}}, ("output",))


def _rounded(spec: Spec) -> Spec:
    spec.module.cpu().half().float().eval()
    return spec


def write_voices(out: Path) -> None:
    """Write the stored voices, as speaker embeddings without a prompt, like those of CosyVoice-300M-SFT.

    A language model this small makes fewer errors without a prompt. The server's own frontend computes the embeddings.
    """
    bundle = read(out)
    text = bundle.text_tokenizer()
    listener, tokenizer = (OnnxGraph(path, 1).first for path in (bundle.campplus, bundle.speech_tokenizer))
    frontend = Frontend(bundle.config, text, listener, tokenizer, VoiceStore(out / "voices"))
    voices = {}
    for speaker in SPEAKERS:
        voice = frontend.voice_of(speak(PROMPT, speaker).wave / 32768, SAMPLE_RATE)
        voices[speaker.name] = {"embedding": torch.from_numpy(voice.speaker_embedding)[None]}
    torch.save(voices, out / "spk2info.pt")
