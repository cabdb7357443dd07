"""What a bundle says about its model: ``cosyvoice2.yaml`` and Qwen2's ``config.json`` to `ModelConfig`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cosyserve.config import FlowConfig, HiftConfig, LlmConfig, MelConfig, ModelConfig
from cosyserve.errors import BundleError
from cosyserve.hyperyaml import CLASS, read_yaml

YAML = "cosyvoice2.yaml"
QWEN = "CosyVoice-BlankEN"

UP_BLOCKS = 4  # encoder layers after up-sampling: a constant upstream


def read_config(folder: Path) -> ModelConfig:
    """`ModelConfig` from ``cosyvoice2.yaml`` and ``CosyVoice-BlankEN/config.json``.

    Raises:
        BundleError: naming file and key.
    """
    root = _Section(YAML, "", read_yaml(folder / YAML))
    try:
        qwen_data = json.loads((folder / QWEN / "config.json").read_text("utf-8"))
    except ValueError as problem:
        raise BundleError(f"{QWEN}/config.json: not JSON: {problem}") from problem
    qwen = _Section(f"{QWEN}/config.json", "", qwen_data)
    return ModelConfig(
        version=2,
        sample_rate=root.integer("sample_rate"),
        token_rate=root.section("flow").integer("input_frame_rate"),
        llm=_llm_config(root.section("llm", "Qwen2LM"), qwen),
        flow=_flow_config(root.section("flow", "CausalMaskedDiffWithXvec")),
        hift=_hift_config(root.section("hift", "HiFTGenerator")),
        mel=_mel_config(root.section("feat_extractor", "mel_spectrogram")),
    )


def _llm_config(llm: _Section, qwen: _Section) -> LlmConfig:
    hidden, heads = qwen.integer("hidden_size"), qwen.integer("num_attention_heads")
    for key in ("llm_input_size", "llm_output_size"):
        if llm.integer(key) != hidden:
            raise llm.error(key, f"expected {hidden} ({qwen.file}: hidden_size), found {llm.integer(key)}")
    qwen.require(hidden_act="silu", use_sliding_window=False, rope_scaling=None)
    text, speech = llm.integers("mix_ratio", 2)
    sampling = llm.section("sampling", "ras_sampling")
    return LlmConfig(
        hidden=hidden,
        intermediate=qwen.integer("intermediate_size"),
        layers=qwen.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=qwen.integer("num_key_value_heads"),
        head_dim=qwen.integer("head_dim") if "head_dim" in qwen.data else hidden // heads,
        rope_theta=qwen.number("rope_theta"),
        rms_eps=qwen.number("rms_norm_eps"),
        vocab=qwen.integer("vocab_size"),
        speech_tokens=llm.integer("speech_token_size"),
        mix_ratio=(text, speech),
        top_p=sampling.number("top_p"),
        top_k=sampling.integer("top_k"),
        win_size=sampling.integer("win_size"),
        tau_r=sampling.number("tau_r"),
    )


def _flow_config(flow: _Section) -> FlowConfig:
    encoder = flow.section("encoder", "UpsampleConformerEncoder")
    decoder = flow.section("decoder", "CausalConditionalCFM")
    estimator = decoder.section("estimator", "CausalConditionalDecoder")
    solver = decoder.section("cfm_params").section("content")
    mels, width = flow.integer("output_size"), encoder.integer("output_size")
    flow.require(input_size=width)
    encoder.require(
        input_size=width,
        normalize_before=True,
        input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="rel_selfattn",
        use_cnn_module=False,
        macaron_style=False,
    )
    solver.require(solver="euler", t_scheduler="cosine")
    estimator.require(in_channels=4 * mels, out_channels=mels, act_fn="gelu", num_decoding_left_chunks=-1)
    return FlowConfig(
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
        cfg_rate=solver.number("inference_cfg_rate"),
    )


def _hift_config(hift: _Section) -> HiftConfig:
    istft = hift.section("istft_params")
    predictor = hift.section("f0_predictor", "ConvRNNF0Predictor")
    predictor.require(num_class=1, in_channels=hift.integer("in_channels"))
    rates = hift.integers("upsample_rates")
    return HiftConfig(
        mels=hift.integer("in_channels"),
        channels=hift.integer("base_channels"),
        harmonics=hift.integer("nb_harmonics"),
        sample_rate=hift.integer("sampling_rate"),
        nsf_alpha=hift.number("nsf_alpha"),
        nsf_sigma=hift.number("nsf_sigma"),
        voiced_threshold=hift.number("nsf_voiced_threshold"),
        up_rates=rates,
        up_kernels=hift.integers("upsample_kernel_sizes", len(rates)),
        n_fft=istft.integer("n_fft"),
        hop=istft.integer("hop_len"),
        res_kernels=hift.integers("resblock_kernel_sizes"),
        res_dilations=hift.rows("resblock_dilation_sizes"),
        source_kernels=hift.integers("source_resblock_kernel_sizes", len(rates)),
        source_dilations=hift.rows("source_resblock_dilation_sizes"),
        slope=hift.number("lrelu_slope"),
        limit=hift.number("audio_limit"),
        f0_channels=predictor.integer("cond_channels"),
    )


def _mel_config(mel: _Section) -> MelConfig:
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


class _Section:
    """A mapping of a file, with lookups whose errors name file and key."""

    def __init__(self, file: str, path: str, data: Any) -> None:
        self.file, self.path, self.data = file, path, data
        if not isinstance(data, dict):
            raise self.error("", f"expected a mapping, found {data!r}")

    def error(self, key: str, problem: str) -> BundleError:
        where = ".".join(part for part in (self.path, key) if part)
        return BundleError(f"{self.file}: {where or 'top level'}: {problem}")

    def get(self, key: str) -> Any:
        if key not in self.data:
            raise self.error(key, "missing")
        return self.data[key]

    def section(self, key: str, cls: str | None = None) -> _Section:
        inner = _Section(self.file, f"{self.path}.{key}" if self.path else key, self.get(key))
        found = str(inner.data.get(CLASS, "a plain mapping")).rsplit(".", 1)[-1]
        if cls is not None and found != cls:
            raise self.error(key, f"expected class {cls}, found {found}")
        return inner

    def number(self, key: str) -> float:
        value = self.get(key)
        try:  # through text: YAML 1.1 reads 1e-6 (no dot) as such, and a bool is no number
            return float(str(value))
        except ValueError:
            raise self.error(key, f"expected a number, found {value!r}") from None

    def integer(self, key: str) -> int:
        value = self.number(key)
        if value != int(value):
            raise self.error(key, f"expected a whole number, found {value!r}")
        return int(value)

    def integers(self, key: str, count: int | None = None) -> tuple[int, ...]:
        value = self.get(key)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(key, f"expected a list of whole numbers, found {value!r}")
        if count is not None and len(value) != count:
            raise self.error(key, f"expected {count} entries, found {len(value)}")
        return tuple(value)

    def rows(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self.get(key)
        if not isinstance(value, list):
            raise self.error(key, f"expected a list of lists, found {value!r}")
        inner = _Section(self.file, f"{self.path}.{key}", {str(i): row for i, row in enumerate(value)})
        return tuple(inner.integers(name) for name in inner.data)

    def require(self, **fixed: object) -> None:
        """Refuse values that the networks here do not implement; an absent key means upstream's default."""
        for key, expected in fixed.items():
            if key in self.data and self.data[key] != expected:
                raise self.error(key, f"expected {expected!r}, found {self.data[key]!r}")
