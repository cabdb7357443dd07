"""Random-weight CosyVoice2 bundles in the official layout, for tests, benchmarks and the demo.

The sound means nothing, but every stage behaves: sampling is diverse, utterances end, the pitch is voiced, the
waveform is neither silent nor clipped. The same seed gives the same bundle.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from cosyserve.bundle import StateDict, read
from cosyserve.config import ModelConfig
from cosyserve.errors import Unsupported
from cosyserve.hift.generator import Decoder, F0Predictor
from cosyserve.hift.source import HarmonicSource
from cosyserve.llm.qwen2 import SpeechLM
from cosyserve.recipe import QWEN, YAML, read_config
from cosyserve.shapes import Shapes, expected_shapes

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

Size = Literal["tiny", "small", "full"]

VOICE = "demo"
PROMPT_TEXT = "The small boat drifted slowly across the quiet lake."
PROMPT_TOKENS = 60  # 2.4 s
END_HAZARD = 1 / 150  # chance of the end token per step: about 9 speech tokens per text token for 20 text tokens
LOGIT_SPREAD = 2.0  # standard deviation of the logits: top_k binds and no token dominates
NEVER = -30.0  # bias of the two ids behind the end token, which stop a run early when sampled
F0_MEAN, F0_SPREAD = 170.0, 20.0  # Hz
RMS = 0.07  # of the waveform
MEL_MEAN, MEL_SPREAD = -4.0, 1.5  # of the prompt mel, roughly that of speech

SAMPLE_TEXT = (
    "The small boat drifted slowly across the quiet lake. Good morning, the train to the harbor leaves at nine. "
    "She opened the window and listened to the rain. We will meet again on Monday, and then we can walk together. "
    "He thought that nothing would ever change, but everything was already different. It is what it was. "
    "Please call me when you are there; I have something interesting to tell you about the other house. "
    "今天的天气真不错，我们一起去公园散步吧。收到你的来信，我很高兴。他在厨房里煮了一锅汤，味道很香。"
    "请把窗户打开，让新鲜的空气进来。老师让我们写一篇关于秋天的文章。山上的雪还没有融化，河水已经开始流动。"
)


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What differs between the sizes."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    merges: int
    text_ids: int  # entries of vocab.json, padded with ids that no text reaches
    vocab: int  # rows of the text embedding
    encoder_heads: int
    encoder_ff: int
    encoder_blocks: int
    channels: int
    unet_heads: int
    unet_head_dim: int
    unet_blocks: int
    mid_blocks: int
    hift_channels: int
    f0_channels: int


SIZES: dict[Size, Dimensions] = {
    "tiny": Dimensions(48, 128, 2, 3, 1, 200, 456, 512, 4, 96, 1, 64, 4, 16, 2, 2, 64, 32),
    "small": Dimensions(256, 1024, 6, 4, 2, 400, 656, 704, 8, 512, 2, 128, 4, 32, 2, 4, 128, 64),
    "full": Dimensions(896, 4864, 24, 14, 2, 400, 151643, 151936, 8, 2048, 6, 256, 8, 64, 4, 12, 512, 512),
}


def synth_bundle(out: Path, version: int, size: Size, seed: int) -> None:
    """Write a random bundle that `cosyserve.bundle.read` accepts.

    Args:
        out: folder to fill; made when absent.
        version: CosyVoice generation; 2.
        size: ``tiny`` (10 MB), ``small`` or ``full`` (the official dimensions, 2.5 GB).
        seed: of all weights.

    Raises:
        Unsupported: another version.
    """
    if version != 2:
        raise Unsupported(f"synth-bundle: CosyVoice version {version} is not supported yet, only version 2")
    prompt_ids = write_recipe(out, size)
    config = read_config(out)
    rng = np.random.Generator(np.random.Philox(seed))
    with torch.no_grad():
        _write_llm(out, config, rng)
        torch.save(_random_state(expected_shapes(config, "flow"), rng), out / "flow.pt")
        torch.save(_split_weight_norm(_hift(config, rng)), out / "hift.pt")
    _write_campplus(out / "campplus.onnx", config.flow.speaker, rng)
    _write_speech_tokenizer(out / "speech_tokenizer_v2.onnx", rng)
    torch.save({VOICE: _voice(config, prompt_ids, rng)}, out / "spk2info.pt")
    read(out)


def write_recipe(out: Path, size: Size) -> list[int]:
    """Write all of a bundle but its weights: YAML, Qwen2 sizes and tokenizer. Returns the ids of `PROMPT_TEXT`."""
    dims = SIZES[size]
    (out / QWEN).mkdir(parents=True, exist_ok=True)
    tag = {"framework": "Pytorch", "task": "text-to-speech", "random_weights": True}
    _write_json(out / "configuration.json", tag)
    _write_json(out / QWEN / "config.json", _qwen_config(dims))
    (out / YAML).write_text(_yaml(dims), "utf-8")
    return _write_tokenizer(out / QWEN, dims)


# --- Weights --------------------------------------------------------------------------------------------------------


def _weights(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> torch.Tensor:
    """Random values of four levels: as good as normal ones for noise, and an archive of them is a twelfth the size."""
    levels = np.array([-1.5, -0.5, 0.5, 1.5], np.float32) * np.float32(std / math.sqrt(1.25))
    return torch.from_numpy(levels[rng.integers(0, 4, shape, dtype=np.uint8)])


def _normal(rng: np.random.Generator, shape: tuple[int, ...], std: float, mean: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).mul_(std).add_(mean)


def _random_state(shapes: Shapes, rng: np.random.Generator) -> StateDict:
    return {name: _random_tensor(name, shape, rng) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """Variance-preserving weights: a layer keeps the scale of its input, a residual branch adds a fraction to it."""
    if name.endswith(".alpha") or (len(shape) == 1 and name.endswith("weight")):
        return torch.ones(shape)
    if name.endswith("bias"):
        return _normal(rng, shape, 0.02)
    if name.endswith("embedding.weight") or "embed_tokens" in name:
        return _weights(rng, shape, 1.0)
    if "pos_bias" in name:
        return _normal(rng, shape, 0.1)
    fan_in = math.prod(shape[1:])
    if name.startswith("ups."):  # transposed: [in, out, kernel], and about two taps reach each output
        fan_in = 2 * shape[0]
    branch = 0.3 if ".convs2." in name else 1.0
    return _weights(rng, shape, branch / math.sqrt(fan_in))


def _write_llm(out: Path, config: ModelConfig, rng: np.random.Generator) -> None:
    llm = config.llm
    state = _random_state(expected_shapes(config, "llm"), rng)
    weight, bias = state["llm_decoder.weight"], state["llm_decoder.bias"]
    weight *= LOGIT_SPREAD
    weight[llm.end :] = 0
    bias[llm.end :] = NEVER

    model = SpeechLM(llm).eval()
    outside = ("llm_embedding.", "speech_embedding.", "llm.model.model.embed_tokens.")
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith(outside)})
    tokens = torch.from_numpy(rng.integers(0, llm.speech_tokens, (1, 256)))
    empty = [torch.zeros(1, llm.kv_heads, 1, llm.head_dim) for _ in range(llm.layers)]
    hidden, *_ = model.hidden(
        state["speech_embedding.weight"][tokens], torch.zeros(1, dtype=torch.int64), empty, list(empty)
    )
    bias[llm.end] = _end_bias((hidden[0] @ weight.T + bias).double().numpy(), llm.end, llm.top_p, llm.top_k)

    state["llm.model.lm_head.weight"] = state["llm.model.model.embed_tokens.weight"]  # tied, as the official one
    torch.save(state, out / "llm.pt")


def _end_bias(logits: NDArray[np.float64], end: int, top_p: float, top_k: int) -> float:
    """The logit of the end token for which a nucleus draw ends with chance `END_HAZARD`, averaged over `logits`."""
    others = -np.sort(-np.delete(logits, end, axis=1), axis=1)
    weights, total = np.exp(others[:, :top_k]), np.exp(others).sum(axis=1)

    def hazard(bias: float) -> float:
        end_weight = math.exp(bias)
        before = (weights > end_weight).sum(axis=1)
        merged = -np.sort(-np.concatenate([weights, np.full((len(weights), 1), end_weight)], axis=1), axis=1)
        reached = np.cumsum(merged, axis=1) - merged
        kept = (reached < top_p * (total + end_weight)[:, None]) & (np.arange(merged.shape[1]) < top_k)
        inside = kept[np.arange(len(kept)), before]
        return float(np.mean(np.where(inside, end_weight / (merged * kept).sum(axis=1), 0.0)))

    low, high = 0.0, float(others.max())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if hazard(middle) < END_HAZARD else (low, middle)
    return high


def _hift(config: ModelConfig, rng: np.random.Generator) -> StateDict:
    """Random vocoder, scaled on a probe so that pitch and loudness are those of a voice."""
    hift = config.hift
    state = _random_state(expected_shapes(config, "hift"), rng)
    probe = _normal(rng, (1, hift.mels, 100), MEL_SPREAD)

    def part(prefix: str) -> StateDict:
        return {key: value for key, value in state.items() if key.startswith(prefix)}

    predictor = F0Predictor(hift).eval()
    weight, bias = state["f0_predictor.classifier.weight"], state["f0_predictor.classifier.bias"]
    bias.fill_(1000.0)  # far from the absolute value's kink
    predictor.load_state_dict(part("f0_predictor."))
    raw = predictor(probe) - 1000.0
    gain = F0_SPREAD / float(raw.std())
    weight *= gain
    bias.fill_(F0_MEAN - gain * float(raw.mean()))
    predictor.load_state_dict(part("f0_predictor."))

    state["m_source.l_linear.weight"].mul_(1 / hift.nsf_alpha)
    source_net = HarmonicSource(hift).eval()
    source_net.load_state_dict(part("m_source."))
    f0 = predictor(probe)
    overtones = hift.harmonics + 1
    noise = _normal(rng, (1, f0.shape[1] * hift.frame, overtones), 1.0)
    source, _ = source_net(f0, torch.zeros(1, overtones, dtype=torch.float64), torch.ones(1), noise)

    bins = hift.n_fft // 2 + 1
    magnitude = state["conv_post.bias"][:bins]
    state["conv_post.weight"][:bins] *= 0.3  # gentle magnitudes: exp() of them follows
    decoder = Decoder(hift).eval()
    decoder_state = {k: v for k, v in state.items() if not k.startswith(("f0_predictor.", "m_source."))}
    magnitude.fill_(-4.0)
    decoder.load_state_dict(decoder_state)
    magnitude += math.log(RMS / float(decoder(probe, source).square().mean().sqrt()))
    return state


def _split_weight_norm(state: StateDict) -> StateDict:
    """The on-disk spelling: gain and direction of every weight that upstream wraps in weight norm."""
    split: StateDict = {}
    plain = ("m_source.", "source_downs.", "f0_predictor.classifier.")
    for key, value in state.items():
        if not key.endswith(".weight") or key.startswith(plain):
            split[key] = value
            continue
        at = key.removesuffix(".weight") + ".parametrizations.weight."
        split[at + "original0"] = value.flatten(1).norm(dim=1).reshape(-1, 1, 1)
        split[at + "original1"] = value
    return split


def _voice(config: ModelConfig, prompt_ids: list[int], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """A stored zero-shot speaker (upstream frontend.py :: add_zero_shot_spk), usable in sft mode too."""
    flow = config.flow
    tokens = torch.from_numpy(rng.integers(0, flow.tokens, (1, PROMPT_TOKENS), dtype=np.int32))
    mel = _normal(rng, (1, PROMPT_TOKENS * flow.ratio, flow.mels), MEL_SPREAD, MEL_MEAN)
    embedding = _normal(rng, (1, flow.speaker), 1.0)
    text = torch.tensor([prompt_ids], dtype=torch.int32)

    def length(tensor: torch.Tensor) -> torch.Tensor:
        return torch.tensor([tensor.shape[1]], dtype=torch.int32)

    return {
        "prompt_text": text,
        "prompt_text_len": length(text),
        "llm_prompt_speech_token": tokens,
        "llm_prompt_speech_token_len": length(tokens),
        "flow_prompt_speech_token": tokens.clone(),
        "flow_prompt_speech_token_len": length(tokens),
        "prompt_speech_feat": mel,
        "prompt_speech_feat_len": length(mel),
        "llm_embedding": embedding,
        "flow_embedding": embedding.clone(),
        "embedding": embedding.clone(),
    }


# --- Text files -----------------------------------------------------------------------------------------------------


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _write_tokenizer(folder: Path, dims: Dimensions) -> list[int]:
    """Byte-level BPE that covers every byte, its merges learnt from `SAMPLE_TEXT`; returns the ids of `PROMPT_TEXT`."""
    from tokenizers import Tokenizer as Bpe
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    bpe = Bpe(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=256 + dims.merges, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False
    )
    bpe.train_from_iterator([SAMPLE_TEXT], trainer)
    bpe.model.save(str(folder))
    vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))
    vocab |= {f"<unused_{index:06d}>": index for index in range(len(vocab), dims.text_ids)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = {
        str(dims.text_ids + index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for index, token in enumerate(specials)
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": specials[1:],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": specials[0],
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": specials[0],
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    ids: list[int] = bpe.encode(PROMPT_TEXT).ids
    return ids


def _qwen_config(dims: Dimensions) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": dims.text_ids,
        "eos_token_id": dims.text_ids,
        "hidden_act": "silu",
        "hidden_size": dims.hidden,
        "initializer_range": 0.02,
        "intermediate_size": dims.intermediate,
        "max_position_embeddings": 32768,
        "max_window_layers": dims.layers,
        "model_type": "qwen2",
        "num_attention_heads": dims.heads,
        "num_hidden_layers": dims.layers,
        "num_key_value_heads": dims.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": dims.vocab,
    }


def _yaml(dims: Dimensions) -> str:
    return f"""\
# Random weights in the official key layout, written by `cosyserve-build synth-bundle`.
sample_rate: 24000
llm_input_size: {dims.hidden}
llm_output_size: {dims.hidden}
spk_embed_dim: 192
qwen_pretrain_path: ''
token_frame_rate: 25
token_mel_ratio: 2
chunk_size: 25
num_decoding_left_chunks: -1

llm: !new:cosyvoice.llm.llm.Qwen2LM
    llm_input_size: !ref <llm_input_size>
    llm_output_size: !ref <llm_output_size>
    speech_token_size: 6561
    mix_ratio: [5, 15]
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: !ref <qwen_pretrain_path>
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
        win_size: 10
        tau_r: 0.1

flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithXvec
    input_size: 512
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: 6561
    input_frame_rate: !ref <token_frame_rate>
    only_mask_loss: True
    token_mel_ratio: !ref <token_mel_ratio>
    pre_lookahead_len: 3
    encoder: !new:cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder
        output_size: 512
        attention_heads: {dims.encoder_heads}
        linear_units: {dims.encoder_ff}
        num_blocks: {dims.encoder_blocks}
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        input_size: 512
        use_cnn_module: False
        macaron_style: False
        static_chunk_size: !ref <chunk_size>
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        in_channels: 240
        n_spks: 1
        spk_emb_dim: 80
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: 0.7
                reg_loss_type: 'l1'
        estimator: !new:cosyvoice.flow.decoder.CausalConditionalDecoder
            in_channels: 320
            out_channels: 80
            channels: [{dims.channels}]
            dropout: 0.0
            attention_head_dim: {dims.unet_head_dim}
            n_blocks: {dims.unet_blocks}
            num_mid_blocks: {dims.mid_blocks}
            num_heads: {dims.unet_heads}
            act_fn: 'gelu'
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
            num_decoding_left_chunks: !ref <num_decoding_left_chunks>

hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: 80
    base_channels: {dims.hift_channels}
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 5, 3]
    upsample_kernel_sizes: [16, 11, 7]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: 80
        cond_channels: {dims.f0_channels}

get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    token_path: !ref <qwen_pretrain_path>
    skip_special_tokens: True
allowed_special: 'all'
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: 1920
    num_mels: 80
    sampling_rate: !ref <sample_rate>
    hop_size: 480
    win_size: 1920
    fmin: 0
    fmax: 8000
    center: False
"""


# --- ONNX graphs ----------------------------------------------------------------------------------------------------


def _save_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[Any]],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
) -> None:
    import onnx
    from onnx import helper, numpy_helper

    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _write_campplus(path: Path, speaker: int, rng: np.random.Generator) -> None:
    """fbank f32 [B,T,80] to a speaker vector f32 [B,192]: a time mean of tanh features, projected."""
    from onnx import TensorProto, helper

    weights: dict[str, NDArray[Any]] = {
        "inner": rng.standard_normal((80, speaker), dtype=np.float32) / np.float32(math.sqrt(80)),
        "outer": rng.standard_normal((speaker, speaker), dtype=np.float32) * np.float32(0.5),
    }
    nodes = [
        helper.make_node("MatMul", ["input", "inner"], ["projected"]),
        helper.make_node("Tanh", ["projected"], ["features"]),
        helper.make_node("ReduceMean", ["features"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "outer"], ["output"]),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", "T", 80])]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", speaker])
    _save_graph(path, nodes, weights, inputs, output)


def _write_speech_tokenizer(path: Path, rng: np.random.Generator) -> None:
    """Log-mel f32 [B,128,T] to ids i32 [B,ceil(T/4)] in 0..6560: two strided convolutions, 8 ternary digits."""
    from onnx import TensorProto, helper

    width, digits = 32, 8
    weights: dict[str, NDArray[Any]] = {
        "stem": rng.standard_normal((width, 128, 3), dtype=np.float32) / np.float32(math.sqrt(128)),
        "head": rng.standard_normal((digits, width, 3), dtype=np.float32) / np.float32(math.sqrt(width)),
        "zero": np.array(0, np.int32),
        "one": np.array(1, np.int32),
        "last": np.array(2, np.int64),
        "axes": np.array([1, 2], np.int64),
        "below_one": np.array(0.999, np.float32),
        "unit": np.array(1, np.float32),
        "places": (3.0 ** np.arange(digits, dtype=np.float32)).reshape(1, digits, 1),
    }
    convolution: dict[str, Any] = {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}
    nodes = [
        helper.make_node("Shape", ["feats"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["frames64"]),
        helper.make_node("Cast", ["frames64"], ["frames"], to=TensorProto.INT32),
        helper.make_node("Range", ["zero", "frames", "one"], ["positions"]),
        helper.make_node("Unsqueeze", ["feats_length", "axes"], ["lengths"]),
        helper.make_node("Less", ["positions", "lengths"], ["valid"]),
        helper.make_node("Cast", ["valid"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["feats", "mask"], ["masked"]),
        helper.make_node("Conv", ["masked", "stem"], ["stem_out"], **convolution),
        helper.make_node("Relu", ["stem_out"], ["hidden"]),
        helper.make_node("Conv", ["hidden", "head"], ["codes"], **convolution),
        helper.make_node("Tanh", ["codes"], ["bounded"]),
        helper.make_node("Mul", ["bounded", "below_one"], ["shrunk"]),
        helper.make_node("Round", ["shrunk"], ["rounded"]),
        helper.make_node("Add", ["rounded", "unit"], ["digits"]),
        helper.make_node("Mul", ["digits", "places"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "digit_axis"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["indices"], to=TensorProto.INT32),
    ]
    weights["digit_axis"] = np.array([1], np.int64)
    inputs = [
        helper.make_tensor_value_info("feats", TensorProto.FLOAT, ["B", 128, "T"]),
        helper.make_tensor_value_info("feats_length", TensorProto.INT32, ["B"]),
    ]
    _save_graph(path, nodes, weights, inputs, helper.make_tensor_value_info("indices", TensorProto.INT32, ["B", "N"]))
