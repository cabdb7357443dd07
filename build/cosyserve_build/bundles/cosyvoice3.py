"""Read ``cosyvoice3.yaml``."""

from __future__ import annotations

import json
from pathlib import Path

from cosyserve.config import CausalHiftConfig, CosyVoice3LlmConfig, DitFlowConfig, ModelConfig
from cosyserve.errors import BundleError
from cosyserve.text.special_tokens import END_OF_PROMPT
from cosyserve.versions.base import Version
from cosyserve_build.bundles.parts import QWEN, hift_sizes, llm_sizes, mel_config, solver
from cosyserve_build.bundles.section import Section


def read(folder: Path, root: Section, version: Version) -> ModelConfig:
    """Read the sizes of a CosyVoice3 model."""
    flow = root.section("flow", "CausalMaskedDiffWithDiT")
    hift = root.section("hift", "CausalHiFTGenerator")
    return ModelConfig(
        version=version.number,
        sample_rate=root.integer("sample_rate"),
        token_rate=flow.integer("input_frame_rate"),
        llm=CosyVoice3LlmConfig(
            **llm_sizes(folder, root.section("llm", "CosyVoice3LM")),
            end_of_prompt=_end_of_prompt(folder, version),
        ),
        flow=_flow_config(flow),
        hift=CausalHiftConfig(
            **hift_sizes(hift, "CausalConvRNNF0Predictor"), look_right=hift.integer("conv_pre_look_right")
        ),
        mel=mel_config(root.section("feat_extractor", "mel_spectrogram")),
    )


def _end_of_prompt(folder: Path, version: Version) -> int:
    """Id of the token, counted from the vocabulary's size: loading the whole tokenizer takes seconds."""
    file = f"{QWEN}/vocab.json"
    try:
        vocabulary = json.loads((folder / file).read_text("utf-8"))
    except ValueError as problem:
        raise BundleError(f"{file}: not JSON: {problem}") from problem
    return len(vocabulary) + version.special_tokens.index(END_OF_PROMPT)


def _flow_config(flow: Section) -> DitFlowConfig:
    mels, ratio = flow.integer("output_size"), flow.integer("token_mel_ratio")
    settings, dit = solver(flow, mels, "DiT")
    ahead = flow.section("pre_lookahead_layer", "PreLookaheadLayer")
    lookahead = flow.integer("pre_lookahead_len")
    flow.require(input_size=mels)
    ahead.require(in_channels=mels, pre_lookahead_len=lookahead)
    dit.require(mel_dim=mels, mu_dim=mels, spk_dim=mels)
    width, chunk = dit.integer("dim"), dit.integer("static_chunk_size")
    if chunk % ratio:
        raise dit.error("static_chunk_size", f"expected a multiple of {ratio}, found {chunk}")
    return DitFlowConfig(
        tokens=flow.integer("vocab_size"),
        chunk=chunk // ratio,
        lookahead=lookahead,
        ratio=ratio,
        mels=mels,
        speaker=flow.integer("spk_embed_dim"),
        cfg_rate=settings.number("inference_cfg_rate"),
        lookahead_channels=ahead.integer("channels"),
        dit_width=width,
        dit_blocks=dit.integer("depth"),
        dit_heads=dit.integer("heads"),
        dit_head_dim=dit.integer("dim_head"),
        dit_feed_forward=dit.integer("ff_mult") * width,
        dit_chunk=chunk,
    )
