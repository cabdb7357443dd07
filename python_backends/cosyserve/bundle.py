"""Read a CosyVoice2 model bundle as data: YAML to `ModelConfig`, checkpoints to checked state dicts.

Nothing named in the YAML is imported or executed: ``!new:``, ``!name:`` and ``!apply:`` become plain dicts that carry
the name, ``!ref`` is resolved to the value it points at. Build tools only; the server reads prepared weights.
"""

from __future__ import annotations

import ast
import json
import operator
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosyserve.config import FlowConfig, HiftConfig, LlmConfig, MelConfig, ModelConfig
from cosyserve.errors import BundleError, Unsupported

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

StateDict = dict[str, "torch.Tensor"]
Shapes = dict[str, tuple[int, ...]]

YAML = "cosyvoice2.yaml"
QWEN = "CosyVoice-BlankEN"
REQUIRED = (
    YAML,
    "llm.pt",
    "flow.pt",
    "hift.pt",
    "campplus.onnx",
    "speech_tokenizer_v2.onnx",
    f"{QWEN}/config.json",
    f"{QWEN}/vocab.json",
    f"{QWEN}/merges.txt",
)
OTHER_VERSIONS = {"cosyvoice3.yaml": 3, "cosyvoice.yaml": 1}

UP_BLOCKS = 4  # encoder layers after up-sampling: a constant upstream
LISTED = 5  # differences spelled out in one error


@dataclass(frozen=True, slots=True)
class Bundle:
    """A CosyVoice2 bundle whose files exist and whose YAML was understood. Checkpoints are loaded when asked for.

    Attributes:
        folder: where it lies.
        version: CosyVoice generation, 2.
        config: sizes and constants.
    """

    folder: Path
    version: int
    config: ModelConfig

    @property
    def campplus(self) -> Path:
        """ONNX graph of the speaker encoder: fbank f32 [B,T,80] to f32 [B,192]."""
        return self.folder / "campplus.onnx"

    @property
    def speech_tokenizer(self) -> Path:
        """ONNX graph of the speech tokenizer: log-mel f32 [B,128,T], length i32 [B] to ids i32 [B,ceil(T/4)]."""
        return self.folder / "speech_tokenizer_v2.onnx"

    @property
    def tokenizer(self) -> Path:
        """Folder with vocab.json and merges.txt of the text tokenizer."""
        return self.folder / QWEN

    def llm(self) -> StateDict:
        """``llm.pt`` without the unused ``llm.model.lm_head``: contiguous float32, keys and shapes checked.

        Raises:
            BundleError: unreadable, or keys or shapes differ from what the YAML promises.
        """
        state = _load(self.folder / "llm.pt")
        state.pop("llm.model.lm_head.weight", None)
        return self._checked("llm", state)

    def flow(self) -> StateDict:
        """``flow.pt``: contiguous float32, keys and shapes checked. Raises as `llm`."""
        return self._checked("flow", _load(self.folder / "flow.pt"))

    def hift(self) -> StateDict:
        """``hift.pt`` with ``generator.`` cut from the keys and weight norm folded. Raises as `llm`."""
        raw = {key.replace("generator.", ""): value for key, value in _load(self.folder / "hift.pt").items()}
        return self._checked("hift", fold_weight_norm(raw))

    def spk2info(self) -> dict[str, dict[str, NDArray[Any] | str]]:
        """Stored speakers, upstream's keys, tensors as numpy arrays; empty when the bundle has no spk2info.pt."""
        import torch

        path = self.folder / "spk2info.pt"
        if not path.exists():
            return {}
        speakers: dict[str, dict[str, NDArray[Any] | str]] = {}
        for name, info in _torch_load(path, mmap=False).items():
            if not isinstance(info, dict):
                raise BundleError(f"{path.name}: {name}: expected a dict of tensors, found {type(info).__name__}")
            speakers[name] = {
                key: np.ascontiguousarray(value.numpy()) if isinstance(value, torch.Tensor) else str(value)
                for key, value in info.items()
            }
        return speakers

    def _checked(self, part: str, state: StateDict) -> StateDict:
        found = {key: tuple(value.shape) for key, value in state.items()}
        expected = expected_shapes(self.config, part)
        wrong = [
            f"{key} expected {_shape(expected.get(key))}, found {_shape(found.get(key))}"
            for key in sorted(expected.keys() | found.keys())
            if expected.get(key) != found.get(key)
        ]
        if wrong:
            more = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
            raise BundleError(f"{part}.pt: {len(wrong)} tensors differ: {'; '.join(wrong[:LISTED])}{more}")
        return _own(state)


def read(folder: Path | str) -> Bundle:
    """Open the bundle in `folder`.

    Raises:
        BundleError: files are missing (all of them are named), or the YAML lacks a key or names another class.
        Unsupported: a bundle of another CosyVoice version.
    """
    folder = Path(folder)
    if not (folder / YAML).exists():
        for name, version in OTHER_VERSIONS.items():
            if (folder / name).exists():
                raise Unsupported(f"{name}: CosyVoice version {version} is not supported yet, only version 2")
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise BundleError(f"{folder.name}: missing {', '.join(missing)}")
    return Bundle(folder, 2, read_config(folder))


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


# --- YAML -----------------------------------------------------------------------------------------------------------

CLASS = "__class__"  # key under which a tagged mapping keeps the name that upstream would import
ARGS = "__args__"  # key under which a tagged list keeps its items


@dataclass(frozen=True, slots=True)
class _Ref:
    text: str


def read_yaml(path: Path) -> dict[str, Any]:
    """A HyperPyYAML file as plain data: tagged mappings keep their class name under ``__class__``, refs are resolved.

    Raises:
        BundleError: not YAML, not a mapping, an unknown tag, or a reference to nothing or to itself.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def plain(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        assert isinstance(node, yaml.ScalarNode)
        return loader.construct_scalar(node)

    def tagged(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
        value = plain(loader, node)
        return {CLASS: name, **value} if isinstance(value, dict) else {CLASS: name, ARGS: value}

    for prefix in ("!new:", "!name:", "!apply:"):
        Loader.add_multi_constructor(prefix, tagged)

    def reference(loader: yaml.SafeLoader, node: yaml.Node) -> _Ref:
        return _Ref(str(plain(loader, node)))

    for tag in ("!ref", "!copy"):
        Loader.add_constructor(tag, reference)
    Loader.add_constructor("!tuple", plain)
    try:
        data = yaml.load(path.read_text("utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise BundleError(f"{path.name}: not readable as YAML: {problem}") from problem
    if not isinstance(data, dict):
        raise BundleError(f"{path.name}: expected a mapping at the top")
    try:
        resolved = _Resolver(data).value(data)
    except (LookupError, RecursionError, ValueError) as problem:
        raise BundleError(f"{path.name}: {problem.args[0]}") from problem
    assert isinstance(resolved, dict)
    return resolved


class _Resolver:
    """Replaces every reference by what it points at."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.open: list[str] = []

    def value(self, value: Any) -> Any:
        if isinstance(value, _Ref):
            return self.reference(value.text)
        if isinstance(value, dict):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return value

    def reference(self, text: str) -> Any:
        whole = re.fullmatch(r"\s*<([^<>]+)>\s*", text)
        if whole:
            return self.target(whole[1])
        filled = re.sub(r"<([^<>]+)>", lambda match: str(self.target(match[1])), text)
        try:
            return _arithmetic(ast.parse(filled.strip(), mode="eval").body)
        except (SyntaxError, ValueError, ZeroDivisionError):
            return filled

    def target(self, path: str) -> Any:
        if path in self.open:
            raise ValueError(f"!ref <{path}> points at itself")
        self.open.append(path)
        value: Any = self.root
        for key in re.findall(r"[^.\[\]]+", path):
            if isinstance(value, _Ref):
                value = self.reference(value.text)
            try:
                value = value[int(key) if isinstance(value, list) else key]
            except (LookupError, TypeError, ValueError):
                raise LookupError(f"!ref <{path}> points at nothing") from None
        value = self.value(value)
        self.open.pop()
        return value


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _arithmetic(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_arithmetic(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        result: int | float = _OPERATORS[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))
        return result
    raise ValueError("not arithmetic")


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
        try:  # YAML 1.1 reads 1e-6 (no dot) as text
            return float(value) if not isinstance(value, bool) else float("x")
        except (TypeError, ValueError):
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


# --- Expected tensors -----------------------------------------------------------------------------------------------


def expected_shapes(config: ModelConfig, part: str) -> Shapes:
    """Name and shape of every tensor of a part, as `Bundle.llm`, `Bundle.flow` and `Bundle.hift` return them.

    Args:
        part: ``llm``, ``flow`` or ``hift`` (weight norm folded).
    """
    return {"llm": _llm_shapes, "flow": _flow_shapes, "hift": _hift_shapes}[part](config)


def _linear(name: str, out: int, *fan_in: int, bias: bool = True) -> Shapes:
    """A linear layer, or with a kernel size as last argument a convolution."""
    shapes: Shapes = {f"{name}.weight": (out, *fan_in)}
    return {**shapes, f"{name}.bias": (out,)} if bias else shapes


def _norm(name: str, width: int) -> Shapes:
    return _linear(name, width)


def _llm_shapes(config: ModelConfig) -> Shapes:
    llm = config.llm
    queries, keys = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    shapes: Shapes = {
        "llm_embedding.weight": (2, llm.hidden),
        "speech_embedding.weight": (llm.speech_vocab, llm.hidden),
        "llm.model.model.embed_tokens.weight": (llm.vocab, llm.hidden),
        "llm.model.model.norm.weight": (llm.hidden,),
        **_linear("llm_decoder", llm.speech_vocab, llm.hidden),
    }
    for layer in range(llm.layers):
        at = f"llm.model.model.layers.{layer}"
        shapes |= {f"{at}.{norm}_layernorm.weight": (llm.hidden,) for norm in ("input", "post_attention")}
        shapes |= _linear(f"{at}.self_attn.q_proj", queries, llm.hidden)
        shapes |= _linear(f"{at}.self_attn.k_proj", keys, llm.hidden)
        shapes |= _linear(f"{at}.self_attn.v_proj", keys, llm.hidden)
        shapes |= _linear(f"{at}.self_attn.o_proj", llm.hidden, queries, bias=False)
        shapes |= _linear(f"{at}.mlp.gate_proj", llm.intermediate, llm.hidden, bias=False)
        shapes |= _linear(f"{at}.mlp.up_proj", llm.intermediate, llm.hidden, bias=False)
        shapes |= _linear(f"{at}.mlp.down_proj", llm.hidden, llm.intermediate, bias=False)
    return shapes


def _flow_shapes(config: ModelConfig) -> Shapes:
    flow, at = config.flow, "encoder"
    shapes: Shapes = {
        "input_embedding.weight": (flow.tokens, flow.width),
        **_linear("spk_embed_affine_layer", flow.mels, flow.speaker),
        **_linear(f"{at}.pre_lookahead_layer.conv1", flow.width, flow.width, flow.lookahead + 1),
        **_linear(f"{at}.pre_lookahead_layer.conv2", flow.width, flow.width, 3),
        **_linear(f"{at}.up_layer.conv", flow.width, flow.width, 2 * flow.ratio + 1),
        **_norm(f"{at}.after_norm", flow.width),
        **_linear("encoder_proj", flow.mels, flow.width),
    }
    for embed in ("embed", "up_embed"):
        shapes |= _linear(f"{at}.{embed}.out.0", flow.width, flow.width) | _norm(f"{at}.{embed}.out.1", flow.width)
    for stack, layers in (("encoders", flow.blocks), ("up_encoders", flow.up_blocks)):
        for layer in range(layers):
            shapes |= _conformer_shapes(flow, f"{at}.{stack}.{layer}")
    return shapes | _unet_shapes(flow, "decoder.estimator")


def _conformer_shapes(flow: FlowConfig, at: str) -> Shapes:
    shapes: Shapes = {
        f"{at}.self_attn.linear_pos.weight": (flow.width, flow.width),
        f"{at}.self_attn.pos_bias_u": (flow.heads, flow.width // flow.heads),
        f"{at}.self_attn.pos_bias_v": (flow.heads, flow.width // flow.heads),
        **_linear(f"{at}.feed_forward.w_1", flow.feed_forward, flow.width),
        **_linear(f"{at}.feed_forward.w_2", flow.width, flow.feed_forward),
        **_norm(f"{at}.norm_ff", flow.width),
        **_norm(f"{at}.norm_mha", flow.width),
    }
    for name in ("q", "k", "v", "out"):
        shapes |= _linear(f"{at}.self_attn.linear_{name}", flow.width, flow.width)
    return shapes


def _unet_shapes(flow: FlowConfig, at: str) -> Shapes:
    channels, inputs = flow.channels, 4 * flow.mels
    time = 4 * channels
    inner = flow.unet_heads * flow.unet_head_dim

    def stage(name: str, fan_in: int) -> Shapes:
        shapes = _linear(f"{name}.0.mlp.1", channels, time) | _linear(f"{name}.0.res_conv", channels, fan_in, 1)
        for block, source in (("block1", fan_in), ("block2", channels)):
            shapes |= _linear(f"{name}.0.{block}.block.0", channels, source, 3)
            shapes |= _norm(f"{name}.0.{block}.block.2", channels)
        for layer in range(flow.unet_blocks):
            here = f"{name}.1.{layer}"
            shapes |= _norm(f"{here}.norm1", channels) | _norm(f"{here}.norm3", channels)
            for projection in ("q", "k", "v"):
                shapes |= _linear(f"{here}.attn1.to_{projection}", inner, channels, bias=False)
            shapes |= _linear(f"{here}.attn1.to_out.0", channels, inner)
            shapes |= _linear(f"{here}.ff.net.0.proj", 4 * channels, channels)
            shapes |= _linear(f"{here}.ff.net.2", channels, 4 * channels)
        return shapes

    shapes = _linear(f"{at}.time_mlp.linear_1", time, inputs) | _linear(f"{at}.time_mlp.linear_2", time, time)
    shapes |= stage(f"{at}.down_blocks.0", inputs) | _linear(f"{at}.down_blocks.0.2", channels, channels, 3)
    for block in range(flow.mid_blocks):
        shapes |= stage(f"{at}.mid_blocks.{block}", channels)
    shapes |= stage(f"{at}.up_blocks.0", 2 * channels) | _linear(f"{at}.up_blocks.0.2", channels, channels, 3)
    shapes |= _linear(f"{at}.final_block.block.0", channels, channels, 3)
    shapes |= _norm(f"{at}.final_block.block.2", channels)
    return shapes | _linear(f"{at}.final_proj", flow.mels, channels, 1)


def _hift_shapes(config: ModelConfig) -> Shapes:
    hift = config.hift
    bins = hift.n_fft + 2  # real and imaginary parts
    shapes = _linear("m_source.l_linear", 1, hift.harmonics + 1) | _linear("conv_pre", hift.channels, hift.mels, 7)
    width = hift.channels
    for stage, kernel in enumerate(hift.up_kernels):
        half = width // 2
        shapes |= {f"ups.{stage}.weight": (width, half, kernel), f"ups.{stage}.bias": (half,)}
        rate = int(np.prod(hift.up_rates[stage + 1 :], dtype=int))
        shapes |= _linear(f"source_downs.{stage}", half, bins, 2 * rate if rate > 1 else 1)
        shapes |= _resblock_shapes(
            f"source_resblocks.{stage}", half, hift.source_kernels[stage], hift.source_dilations[stage]
        )
        for branch, (size, dilations) in enumerate(zip(hift.res_kernels, hift.res_dilations, strict=True)):
            shapes |= _resblock_shapes(f"resblocks.{stage * len(hift.res_kernels) + branch}", half, size, dilations)
        width = half
    shapes |= _linear("conv_post", bins, width, 7)
    for layer in range(5):
        fan_in = hift.f0_channels if layer else hift.mels
        shapes |= _linear(f"f0_predictor.condnet.{2 * layer}", hift.f0_channels, fan_in, 3)
    return shapes | _linear("f0_predictor.classifier", 1, hift.f0_channels)


def _resblock_shapes(at: str, channels: int, kernel: int, dilations: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {}
    for layer in range(len(dilations)):
        for half in ("1", "2"):
            shapes |= _linear(f"{at}.convs{half}.{layer}", channels, channels, kernel)
            shapes[f"{at}.activations{half}.{layer}.alpha"] = (channels,)
    return shapes


# --- Checkpoints ----------------------------------------------------------------------------------------------------

_SPELLINGS = (
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
    (".weight_g", ".weight_v"),
)


def fold_weight_norm(state: StateDict) -> StateDict:
    """Replace gain and direction by the weight ``g * v / |v|``, norm over all dimensions but the first.

    Accepts torch's parametrization spelling, the older ``weight_g`` / ``weight_v``, and plain weights.
    """
    folded: StateDict = {}
    for key, value in state.items():
        for gain, direction in _SPELLINGS:
            if key.endswith(gain) and key.removesuffix(gain) + direction in state:
                v = state[key.removesuffix(gain) + direction].float()
                norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.dim() - 1))
                folded[key.removesuffix(gain) + ".weight"] = value.float().reshape(norm.shape) * v / norm
                break
            if key.endswith(direction) and key.removesuffix(direction) + gain in state:
                break
        else:
            folded[key] = value
    return folded


def _load(path: Path) -> StateDict:
    import torch

    state = _torch_load(path, mmap=True)
    strange = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise BundleError(f"{path.name}: not a plain state dict: {', '.join(strange[:LISTED])} hold no tensor")
    return state


def _torch_load(path: Path, *, mmap: bool) -> dict[str, Any]:
    import torch

    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except RuntimeError:  # the old, unzipped format cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, pickle.UnpicklingError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise BundleError(f"{path.name}: unreadable: {reason}") from problem
    if not isinstance(state, dict):
        raise BundleError(f"{path.name}: expected a dict, found {type(state).__name__}")
    return state


def _own(state: StateDict) -> StateDict:
    """Contiguous float32 tensors of which no two share memory; views and ties are copied, the rest stays mapped."""
    seen: set[int] = set()
    owned: StateDict = {}
    for key, value in state.items():
        tensor = value.float().contiguous()
        shared = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        if shared or tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        owned[key] = tensor
    return owned


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))
