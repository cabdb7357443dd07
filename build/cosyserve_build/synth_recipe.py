"""Write the files of a random bundle other than weights: YAML, Qwen2's files and the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cosyserve import versions
from cosyserve.lazy import resolve
from cosyserve.text.tokenizer import qwen2_words
from cosyserve.versions.base import Version
from cosyserve_build.bundles.parts import QWEN

Size = Literal["tiny", "small", "full"]

RANDOM = "Random weights in the official key layout, written by `cosyserve-build synth-bundle`."

PROMPT_TEXT = "The small boat drifted slowly across the quiet lake."

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
    """Dimensions of the networks, which differ between the sizes."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    merges: int
    text_ids: int  # entries of vocab.json, padded with unused ids
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
    lookahead_channels: int
    dit_width: int
    dit_blocks: int
    dit_heads: int
    dit_head_dim: int
    encoder_width: int = 512


SIZES: dict[Size, Dimensions] = {
    "tiny": Dimensions(48, 128, 2, 3, 1, 200, 456, 512, 4, 96, 1, 64, 4, 16, 2, 2, 64, 32, 128, 64, 3, 4, 16),
    "small": Dimensions(256, 1024, 6, 4, 2, 400, 656, 704, 8, 512, 2, 128, 4, 32, 2, 4, 128, 64, 512, 256, 6, 4, 32),
    "full": Dimensions(
        896, 4864, 24, 14, 2, 400, 151643, 151936, 8, 2048, 6, 256, 8, 64, 4, 12, 512, 512, 1024, 1024, 22, 16, 64
    ),
}


@dataclass(frozen=True, slots=True)
class RandomBundle:
    """Layout of random bundles of one version.

    Attributes:
        yaml: returns the content of the model's YAML for given dimensions.
        sizes: dimensions of each size.
        qwen2: whether the bundle has Qwen2's sizes and tokenizer.
        digits: number of ternary digits of a speech token.
        halvings: how often the rate of 100 log-mel frames a second is halved to that of speech tokens.
    """

    yaml: Callable[[Dimensions], str]
    sizes: Mapping[Size, Dimensions]
    qwen2: bool = True
    digits: int = 8
    halvings: int = 2


def sizes(version: int, size: Size) -> Dimensions:
    """Return the dimensions of a random bundle."""
    return random_bundle(versions.get(version)).sizes[size]


def random_bundle(version: Version) -> RandomBundle:
    """Return the layout of random bundles of a version."""
    made: RandomBundle = resolve(version.bundle.random)
    return made


def write_recipe(
    out: Path, version: int, dims: Dimensions, *, note: str = RANDOM, texts: Iterable[str] = (SAMPLE_TEXT,)
) -> None:
    """Write YAML, and Qwen2's sizes and tokenizer for versions that have them.

    Args:
        out: folder of the bundle.
        version: CosyVoice generation.
        dims: dimensions of the networks.
        note: first line of the YAML; `RANDOM` marks the weights as random.
        texts: from which the tokenizer learns its merges.
    """
    out.mkdir(parents=True, exist_ok=True)
    tag = {"framework": "Pytorch", "task": "text-to-speech", "random_weights": note == RANDOM}
    write_json(out / "configuration.json", tag)
    described = versions.get(version)
    made = random_bundle(described)
    (out / described.bundle.yaml).write_text(f"# {note}\n{made.yaml(dims)}", "utf-8")
    if not made.qwen2:
        return
    tokens = dims.text_ids + len(described.special_tokens)
    dims = replace(dims, vocab=max(dims.vocab, tokens + -tokens % 64))
    (out / QWEN).mkdir(exist_ok=True)
    write_json(out / QWEN / "config.json", qwen_config(dims))
    _write_tokenizer(out / QWEN, dims, texts)


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _write_tokenizer(folder: Path, dims: Dimensions, texts: Iterable[str]) -> None:
    """Write a byte-level BPE tokenizer that covers every byte, with merges learnt from `texts`."""
    from tokenizers import Tokenizer as Bpe
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    bpe = Bpe(BPE())
    bpe.pre_tokenizer = qwen2_words()
    trainer = BpeTrainer(
        vocab_size=256 + dims.merges, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
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
    write_json(
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


def qwen_config(dims: Dimensions) -> dict[str, Any]:
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


def _cosyvoice2(dims: Dimensions) -> str:
    return f"""\
{_head(dims, "Qwen2LM")}
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithXvec
    input_size: {dims.encoder_width}
{_FLOW}\
    encoder: !new:cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder
        output_size: {dims.encoder_width}
        attention_heads: {dims.encoder_heads}
        linear_units: {dims.encoder_ff}
        num_blocks: {dims.encoder_blocks}
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        input_size: {dims.encoder_width}
        use_cnn_module: False
        macaron_style: False
        static_chunk_size: !ref <chunk_size>
{_SOLVER}\
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

{_hift(dims, "HiFTGenerator", "ConvRNNF0Predictor")}
{_tokenizer("")}
{_mel("8000")}\
"""


def _cosyvoice3(dims: Dimensions) -> str:
    return f"""\
{_head(dims, "CosyVoice3LM")}
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithDiT
    input_size: 80
{_FLOW}\
    pre_lookahead_layer: !new:cosyvoice.transformer.upsample_encoder.PreLookaheadLayer
        in_channels: 80
        channels: {dims.lookahead_channels}
        pre_lookahead_len: 3
{_SOLVER}\
        estimator: !new:cosyvoice.flow.DiT.dit.DiT
            dim: {dims.dit_width}
            depth: {dims.dit_blocks}
            heads: {dims.dit_heads}
            dim_head: {dims.dit_head_dim}
            ff_mult: 2
            mel_dim: 80
            mu_dim: 80
            spk_dim: 80
            out_channels: 80
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
            num_decoding_left_chunks: !ref <num_decoding_left_chunks>

{_hift(dims, "CausalHiFTGenerator", "CausalConvRNNF0Predictor")}\
    conv_pre_look_right: 4

{_tokenizer("    version: cosyvoice3")}
{_mel("null")}\
"""


# --- Parts that the YAML files of several versions share --------------------------------------------------------------


def _head(dims: Dimensions, language_model: str) -> str:
    return f"""\
sample_rate: 24000
llm_input_size: {dims.hidden}
llm_output_size: {dims.hidden}
spk_embed_dim: 192
qwen_pretrain_path: ''
token_frame_rate: 25
token_mel_ratio: 2
chunk_size: 25
num_decoding_left_chunks: -1

llm: !new:cosyvoice.llm.llm.{language_model}
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
"""


_FLOW = """\
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: 6561
    input_frame_rate: !ref <token_frame_rate>
    only_mask_loss: True
    token_mel_ratio: !ref <token_mel_ratio>
    pre_lookahead_len: 3
"""

_SOLVER = """\
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
"""


def _hift(dims: Dimensions, generator: str, predictor: str) -> str:
    return f"""\
hift: !new:cosyvoice.hifigan.generator.{generator}
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
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.{predictor}
        num_class: 1
        in_channels: 80
        cond_channels: {dims.f0_channels}
"""


def _tokenizer(more: str) -> str:
    return f"""\
get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    token_path: !ref <qwen_pretrain_path>
    skip_special_tokens: True
{more}
allowed_special: 'all'"""


def _mel(fmax: str) -> str:
    return f"""\
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: 1920
    num_mels: 80
    sampling_rate: !ref <sample_rate>
    hop_size: 480
    win_size: 1920
    fmin: 0
    fmax: {fmax}
    center: False
"""


def _cosyvoice1(dims: Dimensions) -> str:
    return f"""\
sample_rate: 22050
text_encoder_input_size: {dims.hidden // 2}
llm_input_size: {dims.hidden}
llm_output_size: {dims.hidden}
spk_embed_dim: 192

llm: !new:cosyvoice.llm.llm.TransformerLM
    text_encoder_input_size: !ref <text_encoder_input_size>
    llm_input_size: !ref <llm_input_size>
    llm_output_size: !ref <llm_output_size>
    text_token_size: 51866
    speech_token_size: 4096
    length_normalized_loss: True
    lsm_weight: 0
    spk_embed_dim: !ref <spk_embed_dim>
    text_encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        input_size: !ref <text_encoder_input_size>
        output_size: {dims.hidden}
        attention_heads: {dims.heads}
        linear_units: {dims.intermediate}
        num_blocks: {dims.encoder_blocks}
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        use_cnn_module: False
        macaron_style: False
        use_dynamic_chunk: False
        use_dynamic_left_chunk: False
        static_chunk_size: 1
    llm: !new:cosyvoice.transformer.encoder.TransformerEncoder
        input_size: !ref <llm_input_size>
        output_size: !ref <llm_output_size>
        attention_heads: {dims.heads}
        linear_units: {dims.intermediate}
        num_blocks: {dims.layers}
        input_layer: 'linear_legacy'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        static_chunk_size: 1
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
        win_size: 10
        tau_r: 0.1

flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: 512
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: 4096
    input_frame_rate: 50
    only_mask_loss: True
    encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
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
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: 80
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
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
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: 320
            out_channels: 80
            channels: [{dims.channels}, {dims.channels}]
            dropout: 0.0
            attention_head_dim: {dims.unet_head_dim}
            n_blocks: {dims.unet_blocks}
            num_mid_blocks: {dims.mid_blocks}
            num_heads: {dims.unet_heads}
            act_fn: 'gelu'

hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: 80
    base_channels: {dims.hift_channels}
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: 80
        cond_channels: {dims.f0_channels}

get_tokenizer: !name:whisper.tokenizer.get_tokenizer
    multilingual: True
    num_languages: 100
    language: 'en'
    task: 'transcribe'
allowed_special: 'all'
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: 1024
    num_mels: 80
    sampling_rate: !ref <sample_rate>
    hop_size: 256
    win_size: 1024
    fmin: 0
    fmax: 8000
    center: False
"""


COSYVOICE1 = RandomBundle(
    _cosyvoice1,
    {
        "tiny": replace(SIZES["tiny"], heads=4),
        "small": SIZES["small"],
        "full": replace(SIZES["full"], hidden=1024, intermediate=4096, layers=14, heads=16),
    },
    qwen2=False,
    # At 50 tokens a second time is halved once less; 7 digits are the most below 4,096 ids.
    digits=7,
    halvings=1,
)
COSYVOICE2 = RandomBundle(_cosyvoice2, SIZES)
COSYVOICE3 = RandomBundle(_cosyvoice3, SIZES)
