"""Read ``cosyvoice.yaml``."""

from __future__ import annotations

from pathlib import Path

from cosyserve.config import ModelConfig, SampleHiftConfig, TransformerConfig, WindowFlowConfig
from cosyserve.errors import Unsupported
from cosyserve.versions.base import Version
from cosyserve_build.bundles.parts import CONFORMER, hift_sizes, mel_config, sampling
from cosyserve_build.bundles.section import Section

WHISPER_IDS = 51866
"""Number of ids of the text tokenizer, which is not part of a bundle (see ``cosyserve_build.whisper``)."""


def read(folder: Path, root: Section, version: Version) -> ModelConfig:
    """Read the sizes of a CosyVoice 1 model."""
    flow = root.section("flow", "MaskedDiffWithXvec")
    mel = mel_config(root.section("feat_extractor", "mel_spectrogram"))
    rate = root.integer("sample_rate")
    return ModelConfig(
        version=version.number,
        sample_rate=rate,
        token_rate=flow.integer("input_frame_rate"),
        llm=_llm_config(root.section("llm", "TransformerLM")),
        flow=_flow_config(flow, rate / mel.hop),
        hift=SampleHiftConfig(**hift_sizes(root.section("hift", "HiFTGenerator"), "ConvRNNF0Predictor")),
        mel=mel,
    )


def _llm_config(llm: Section) -> TransformerConfig:
    text, decoder = llm.section("text_encoder", "ConformerEncoder"), llm.section("llm", "TransformerEncoder")
    vocab, inputs = llm.integer("text_token_size"), llm.integer("llm_input_size")
    if vocab != WHISPER_IDS:
        raise Unsupported(
            f"{llm.file}: text tokenizer with {vocab} ids; only whisper's with {WHISPER_IDS} is supported"
        )
    text.require(
        input_size=llm.integer("text_encoder_input_size"), input_layer="linear", static_chunk_size=1, **CONFORMER
    )
    decoder.require(input_size=inputs, output_size=llm.integer("llm_output_size"), input_layer="linear_legacy")
    decoder.require(static_chunk_size=1, **CONFORMER)
    return TransformerConfig(
        inputs=inputs,
        hidden=decoder.integer("output_size"),
        intermediate=decoder.integer("linear_units"),
        layers=decoder.integer("num_blocks"),
        heads=decoder.integer("attention_heads"),
        vocab=vocab,
        text_inputs=text.integer("input_size"),
        text_hidden=text.integer("output_size"),
        text_heads=text.integer("attention_heads"),
        text_feed_forward=text.integer("linear_units"),
        text_blocks=text.integer("num_blocks"),
        speaker=llm.integer("spk_embed_dim"),
        speech_tokens=llm.integer("speech_token_size"),
        **sampling(llm),
    )


def _flow_config(flow: Section, frame_rate: float) -> WindowFlowConfig:
    encoder, decoder = flow.section("encoder", "ConformerEncoder"), flow.section("decoder", "ConditionalCFM")
    regulator = flow.section("length_regulator", "InterpolateRegulator")
    settings = decoder.section("cfm_params").section("content")
    estimator = decoder.section("estimator", "ConditionalDecoder")
    mels, inputs = flow.integer("output_size"), flow.integer("input_size")
    encoder.require(input_size=inputs, input_layer="linear", static_chunk_size=0, use_dynamic_chunk=False, **CONFORMER)
    regulator.require(channels=mels)
    ratios = regulator.integers("sampling_ratios")
    if set(ratios) != {1}:
        raise regulator.error("sampling_ratios", f"expected ones, found {list(ratios)}")
    settings.require(solver="euler", t_scheduler="cosine")
    estimator.require(in_channels=4 * mels, out_channels=mels, act_fn="gelu")
    return WindowFlowConfig(
        tokens=flow.integer("vocab_size"),
        inputs=inputs,
        width=encoder.integer("output_size"),
        heads=encoder.integer("attention_heads"),
        feed_forward=encoder.integer("linear_units"),
        blocks=encoder.integer("num_blocks"),
        regulator_convs=len(ratios),
        token_rate=flow.integer("input_frame_rate"),
        frame_rate=frame_rate,
        mels=mels,
        speaker=flow.integer("spk_embed_dim"),
        channels=estimator.integers("channels"),
        unet_heads=estimator.integer("num_heads"),
        unet_head_dim=estimator.integer("attention_head_dim"),
        unet_blocks=estimator.integer("n_blocks"),
        mid_blocks=estimator.integer("num_mid_blocks"),
        cfg_rate=settings.number("inference_cfg_rate"),
    )
