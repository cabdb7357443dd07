"""Read ``cosyvoice2.yaml``."""

from __future__ import annotations

from pathlib import Path

from cosyserve.config import HiftConfig, LlmConfig, ModelConfig, UNetFlowConfig
from cosyserve.versions.base import Version
from cosyserve_build.bundles.parts import CONFORMER, hift_sizes, llm_sizes, mel_config, solver
from cosyserve_build.bundles.section import Section

UP_BLOCKS = 4  # encoder layers after up-sampling: a constant upstream


def read(folder: Path, root: Section, version: Version) -> ModelConfig:
    """Read the sizes of a CosyVoice2 model."""
    flow = root.section("flow", "CausalMaskedDiffWithXvec")
    return ModelConfig(
        version=version.number,
        sample_rate=root.integer("sample_rate"),
        token_rate=flow.integer("input_frame_rate"),
        llm=LlmConfig(**llm_sizes(folder, root.section("llm", "Qwen2LM"))),
        flow=_flow_config(flow),
        hift=HiftConfig(**hift_sizes(root.section("hift", "HiFTGenerator"), "ConvRNNF0Predictor")),
        mel=mel_config(root.section("feat_extractor", "mel_spectrogram")),
    )


def _flow_config(flow: Section) -> UNetFlowConfig:
    encoder = flow.section("encoder", "UpsampleConformerEncoder")
    mels, width = flow.integer("output_size"), encoder.integer("output_size")
    settings, estimator = solver(flow, mels, "CausalConditionalDecoder")
    flow.require(input_size=width)
    encoder.require(input_size=width, input_layer="linear", **CONFORMER)
    estimator.require(in_channels=4 * mels, act_fn="gelu")
    return UNetFlowConfig(
        tokens=flow.integer("vocab_size"),
        width=width,
        heads=encoder.integer("attention_heads"),
        feed_forward=encoder.integer("linear_units"),
        blocks=encoder.integer("num_blocks"),
        up_blocks=UP_BLOCKS,
        chunk=encoder.integer("static_chunk_size"),
        lookahead=flow.integer("pre_lookahead_len"),
        ratio=flow.integer("token_mel_ratio"),
        mels=mels,
        speaker=flow.integer("spk_embed_dim"),
        channels=estimator.integers("channels", 1)[0],
        unet_heads=estimator.integer("num_heads"),
        unet_head_dim=estimator.integer("attention_head_dim"),
        unet_blocks=estimator.integer("n_blocks"),
        mid_blocks=estimator.integer("num_mid_blocks"),
        unet_chunk=estimator.integer("static_chunk_size"),
        cfg_rate=settings.number("inference_cfg_rate"),
    )
