"""Readers of the sections that the YAML files of several versions share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cosyserve.config import MelConfig
from cosyserve.errors import BundleError
from cosyserve_build.bundles.section import Section

QWEN = "CosyVoice-BlankEN"

CONFORMER = {
    "normalize_before": True,
    "pos_enc_layer_type": "rel_pos_espnet",
    "selfattention_layer_type": "rel_selfattn",
    "use_cnn_module": False,
    "macaron_style": False,
}
"""Settings that a conformer must have: those that the layers here implement."""


def llm_sizes(folder: Path, llm: Section) -> dict[str, Any]:
    """Fields of `LlmConfig`, from the YAML's section `llm` and Qwen2's own file."""
    qwen = _qwen(folder)
    hidden, heads = qwen.integer("hidden_size"), qwen.integer("num_attention_heads")
    for key in ("llm_input_size", "llm_output_size"):
        if llm.integer(key) != hidden:
            raise llm.error(key, f"expected {hidden} ({qwen.file}: hidden_size), found {llm.integer(key)}")
    qwen.require(hidden_act="silu", use_sliding_window=False, rope_scaling=None)
    text, speech = llm.integers("mix_ratio", 2)
    return {
        "hidden": hidden,
        "intermediate": qwen.integer("intermediate_size"),
        "layers": qwen.integer("num_hidden_layers"),
        "heads": heads,
        "kv_heads": qwen.integer("num_key_value_heads"),
        "head_dim": qwen.integer("head_dim") if "head_dim" in qwen.data else hidden // heads,
        "rope_theta": qwen.number("rope_theta"),
        "rms_eps": qwen.number("rms_norm_eps"),
        "vocab": qwen.integer("vocab_size"),
        "speech_tokens": llm.integer("speech_token_size"),
        "mix_ratio": (text, speech),
        **sampling(llm),
    }


def sampling(llm: Section) -> dict[str, Any]:
    """Sampling settings, by field of the config."""
    ras = llm.section("sampling", "ras_sampling")
    return {
        "top_p": ras.number("top_p"),
        "top_k": ras.integer("top_k"),
        "win_size": ras.integer("win_size"),
        "tau_r": ras.number("tau_r"),
    }


def _qwen(folder: Path) -> Section:
    file = f"{QWEN}/config.json"
    try:
        return Section(file, "", json.loads((folder / file).read_text("utf-8")))
    except ValueError as problem:
        raise BundleError(f"{file}: not JSON: {problem}") from problem


def solver(flow: Section, mels: int, estimator: str) -> tuple[Section, Section]:
    """Sections of the flow's solver settings and of its estimator, which must be of class `estimator`."""
    decoder = flow.section("decoder", "CausalConditionalCFM")
    settings = decoder.section("cfm_params").section("content")
    settings.require(solver="euler", t_scheduler="cosine")
    network = decoder.section("estimator", estimator)
    network.require(out_channels=mels, num_decoding_left_chunks=-1)
    return settings, network


def hift_sizes(hift: Section, predictor: str) -> dict[str, Any]:
    """Fields of `HiftConfig`; `predictor` is the class of the pitch predictor."""
    istft = hift.section("istft_params")
    pitch = hift.section("f0_predictor", predictor)
    pitch.require(num_class=1, in_channels=hift.integer("in_channels"))
    rates = hift.integers("upsample_rates")
    return {
        "mels": hift.integer("in_channels"),
        "channels": hift.integer("base_channels"),
        "harmonics": hift.integer("nb_harmonics"),
        "sample_rate": hift.integer("sampling_rate"),
        "nsf_alpha": hift.number("nsf_alpha"),
        "nsf_sigma": hift.number("nsf_sigma"),
        "voiced_threshold": hift.number("nsf_voiced_threshold"),
        "up_rates": rates,
        "up_kernels": hift.integers("upsample_kernel_sizes", len(rates)),
        "n_fft": istft.integer("n_fft"),
        "hop": istft.integer("hop_len"),
        "res_kernels": hift.integers("resblock_kernel_sizes"),
        "res_dilations": hift.rows("resblock_dilation_sizes"),
        "source_kernels": hift.integers("source_resblock_kernel_sizes", len(rates)),
        "source_dilations": hift.rows("source_resblock_dilation_sizes"),
        "slope": hift.number("lrelu_slope"),
        "limit": hift.number("audio_limit"),
        "f0_channels": pitch.integer("cond_channels"),
    }


def mel_config(mel: Section) -> MelConfig:
    """Read the settings of the prompt mel."""
    mel.require(center=False)
    return MelConfig(
        n_fft=mel.integer("n_fft"),
        hop=mel.integer("hop_size"),
        window=mel.integer("win_size"),
        mels=mel.integer("num_mels"),
        fmin=mel.number("fmin"),
        fmax=None if mel.get("fmax") is None else mel.number("fmax"),
        sample_rate=mel.integer("sampling_rate"),
    )
