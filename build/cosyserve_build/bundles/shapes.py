"""Names and shapes of the tensors of a CosyVoice model, from its sizes."""

from __future__ import annotations

import math

from cosyserve import versions
from cosyserve.config import (
    DIT_GROUPS,
    DIT_TIME,
    DitFlowConfig,
    HiftConfig,
    LlmConfig,
    ModelConfig,
    TransformerConfig,
    UNetFlowConfig,
    WindowFlowConfig,
)
from cosyserve.lazy import resolve

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(config: ModelConfig, part: str) -> Shapes:
    """Return name and shape of every tensor of a part, as `Bundle.llm`, `Bundle.flow` and `Bundle.hift` name them.

    Args:
        part: ``llm``, ``flow`` or ``hift`` (weight norm folded).
    """
    shapes: Shapes = resolve(versions.of(config).networks[part].shapes)(getattr(config, part))
    return shapes


def qwen2_shapes(llm: LlmConfig) -> Shapes:
    """Language model of versions 2 and 3, on Qwen2."""
    queries, keys = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    shapes: Shapes = {} if llm.start_row < llm.speech_vocab else {"llm_embedding.weight": (2, llm.hidden)}
    shapes |= {
        "speech_embedding.weight": (llm.speech_vocab, llm.hidden),
        "llm.model.model.embed_tokens.weight": (llm.vocab, llm.hidden),
        "llm.model.model.norm.weight": (llm.hidden,),
        **_linear("llm_decoder", llm.speech_vocab, llm.hidden, bias=llm.head_bias),
    }
    for layer in range(llm.layers):
        at = f"llm.model.model.layers.{layer}"
        shapes |= {f"{at}.{norm}_layernorm.weight": (llm.hidden,) for norm in ("input", "post_attention")}
        for name, width in (("q", queries), ("k", keys), ("v", keys)):
            shapes |= _linear(f"{at}.self_attn.{name}_proj", width, llm.hidden)
        shapes |= _linear(f"{at}.self_attn.o_proj", llm.hidden, queries, bias=False)
        for name in ("gate", "up"):
            shapes |= _linear(f"{at}.mlp.{name}_proj", llm.intermediate, llm.hidden, bias=False)
        shapes |= _linear(f"{at}.mlp.down_proj", llm.hidden, llm.intermediate, bias=False)
    return shapes


def unet_flow_shapes(flow: UNetFlowConfig) -> Shapes:
    """Flow of version 2: an up-sampling conformer and a causal U-Net."""
    at = "encoder"
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
            shapes |= _layer_shapes(f"{at}.{stack}.{layer}", flow.width, flow.heads, flow.feed_forward)
    return shapes | _unet_shapes(flow, "decoder.estimator")


def _layer_shapes(
    at: str, width: int, heads: int, inner: int, norms: tuple[str, str] = ("norm_ff", "norm_mha")
) -> Shapes:
    """One layer with relative attention."""
    shapes: Shapes = {
        f"{at}.self_attn.linear_pos.weight": (width, width),
        f"{at}.self_attn.pos_bias_u": (heads, width // heads),
        f"{at}.self_attn.pos_bias_v": (heads, width // heads),
        **_linear(f"{at}.feed_forward.w_1", inner, width),
        **_linear(f"{at}.feed_forward.w_2", width, inner),
    }
    for norm in norms:
        shapes |= _norm(f"{at}.{norm}", width)
    for name in ("q", "k", "v", "out"):
        shapes |= _linear(f"{at}.self_attn.linear_{name}", width, width)
    return shapes


def _stack_shapes(
    at: str, inputs: int, width: int, heads: int, inner: int, layers: int, *norms: tuple[str, str]
) -> Shapes:
    """Input layer, layers with relative attention, and final norm."""
    shapes = _linear(f"{at}.embed.out.0", width, inputs) | _norm(f"{at}.embed.out.1", width)
    for layer in range(layers):
        shapes |= _layer_shapes(f"{at}.encoders.{layer}", width, heads, inner, *norms)
    return shapes | _norm(f"{at}.after_norm", width)


def transformer_shapes(llm: TransformerConfig) -> Shapes:
    """Language model of version 1, behind a text encoder."""
    text = (llm.text_inputs, llm.text_hidden, llm.text_heads, llm.text_feed_forward, llm.text_blocks)
    return {
        "text_embedding.weight": (llm.vocab, llm.text_inputs),
        "llm_embedding.weight": (2, llm.inputs),
        "speech_embedding.weight": (llm.speech_tokens, llm.inputs),
        **_stack_shapes("text_encoder", *text),
        **_linear("text_encoder_affine_layer", llm.inputs, llm.text_hidden),
        **_linear("spk_embed_affine_layer", llm.inputs, llm.speaker),
        **_stack_shapes("llm", llm.inputs, llm.hidden, llm.heads, llm.intermediate, llm.layers, ("norm1", "norm2")),
        **_linear("llm_decoder", llm.speech_vocab, llm.hidden),
    }


def window_flow_shapes(flow: WindowFlowConfig) -> Shapes:
    """Flow of version 1: a conformer and a U-Net that see whole windows."""
    at, regulator = "decoder.estimator", "length_regulator.model"
    widths, inputs, time = flow.channels, 4 * flow.mels, 4 * flow.channels[0]
    last = len(widths) - 1
    shapes: Shapes = {
        "input_embedding.weight": (flow.tokens, flow.inputs),
        **_linear("spk_embed_affine_layer", flow.mels, flow.speaker),
        **_stack_shapes("encoder", flow.inputs, flow.width, flow.heads, flow.feed_forward, flow.blocks),
        **_linear("encoder_proj", flow.mels, flow.width),
        **_linear(f"{regulator}.{3 * flow.regulator_convs}", flow.mels, flow.mels, 1),
        **_time_shapes(at, time, inputs),
        **_block_shapes(f"{at}.final_block", widths[0], widths[0], norm=1),
        **_linear(f"{at}.final_proj", flow.mels, widths[0], 1),
    }
    for conv in range(flow.regulator_convs):
        shapes |= _linear(f"{regulator}.{3 * conv}", flow.mels, flow.mels, 3)
        shapes |= _norm(f"{regulator}.{3 * conv + 1}", flow.mels)
    for level, (fan_in, width) in enumerate(zip((inputs, *widths), widths, strict=False)):
        shapes |= _stage_shapes(flow, f"{at}.down_blocks.{level}", fan_in, width, time, norm=1)
        shapes |= _linear(f"{at}.down_blocks.{level}.2{'.conv' if level < last else ''}", width, width, 3)
    for block in range(flow.mid_blocks):
        shapes |= _stage_shapes(flow, f"{at}.mid_blocks.{block}", widths[-1], widths[-1], time, norm=1)
    back = widths[::-1]
    for level, (width, after) in enumerate(zip(back, (*back[1:], widths[0]), strict=True)):
        name = f"{at}.up_blocks.{level}"
        shapes |= _stage_shapes(flow, name, 2 * width, after, time, norm=1)
        shapes |= _linear(f"{name}.2.conv", after, after, 4) if level < last else _linear(f"{name}.2", after, after, 3)
    return shapes


def _unet_shapes(flow: UNetFlowConfig, at: str) -> Shapes:
    channels, inputs = flow.channels, 4 * flow.mels
    time = 4 * channels

    def stage(name: str, fan_in: int) -> Shapes:
        return _stage_shapes(flow, name, fan_in, channels, time, norm=2)

    shapes = _time_shapes(at, time, inputs)
    shapes |= stage(f"{at}.down_blocks.0", inputs) | _linear(f"{at}.down_blocks.0.2", channels, channels, 3)
    for block in range(flow.mid_blocks):
        shapes |= stage(f"{at}.mid_blocks.{block}", channels)
    shapes |= stage(f"{at}.up_blocks.0", 2 * channels) | _linear(f"{at}.up_blocks.0.2", channels, channels, 3)
    shapes |= _block_shapes(f"{at}.final_block", channels, channels, norm=2)
    return shapes | _linear(f"{at}.final_proj", flow.mels, channels, 1)


def _time_shapes(at: str, time: int, inputs: int) -> Shapes:
    return _linear(f"{at}.time_mlp.linear_1", time, inputs) | _linear(f"{at}.time_mlp.linear_2", time, time)


def _stage_shapes(
    flow: UNetFlowConfig | WindowFlowConfig, at: str, fan_in: int, width: int, time: int, *, norm: int
) -> Shapes:
    """A resnet and its transformer blocks; `norm` is the index of the norm behind a convolution."""
    inner = flow.unet_heads * flow.unet_head_dim
    shapes = _linear(f"{at}.0.mlp.1", width, time) | _linear(f"{at}.0.res_conv", width, fan_in, 1)
    for block, source in (("block1", fan_in), ("block2", width)):
        shapes |= _block_shapes(f"{at}.0.{block}", width, source, norm=norm)
    for layer in range(flow.unet_blocks):
        here = f"{at}.1.{layer}"
        shapes |= _norm(f"{here}.norm1", width) | _norm(f"{here}.norm3", width)
        for projection in ("q", "k", "v"):
            shapes |= _linear(f"{here}.attn1.to_{projection}", inner, width, bias=False)
        shapes |= _linear(f"{here}.attn1.to_out.0", width, inner)
        shapes |= _linear(f"{here}.ff.net.0.proj", 4 * width, width)
        shapes |= _linear(f"{here}.ff.net.2", width, 4 * width)
    return shapes


def _block_shapes(at: str, width: int, fan_in: int, *, norm: int) -> Shapes:
    return _linear(f"{at}.block.0", width, fan_in, 3) | _norm(f"{at}.block.{norm}", width)


def dit_flow_shapes(flow: DitFlowConfig) -> Shapes:
    """Flow of version 3: two convolutions and a diffusion transformer."""
    width, inner = flow.dit_width, flow.dit_heads * flow.dit_head_dim
    at = "decoder.estimator"
    shapes: Shapes = {
        "input_embedding.weight": (flow.tokens, flow.mels),
        **_linear("spk_embed_affine_layer", flow.mels, flow.speaker),
        **_linear("pre_lookahead_layer.conv1", flow.lookahead_channels, flow.mels, flow.lookahead + 1),
        **_linear("pre_lookahead_layer.conv2", flow.mels, flow.lookahead_channels, 3),
        **_linear(f"{at}.time_embed.time_mlp.0", width, DIT_TIME),
        **_linear(f"{at}.time_embed.time_mlp.2", width, width),
        **_linear(f"{at}.input_embed.proj", width, 4 * flow.mels),
        f"{at}.rotary_embed.inv_freq": (flow.dit_head_dim // 2,),
        **_linear(f"{at}.norm_out.linear", 2 * width, width),
        **_linear(f"{at}.proj_out", flow.mels, width),
    }
    for index, (channels, frames) in enumerate(flow.tails, start=1):
        name = f"{at}.input_embed.conv_pos_embed.conv{index}.0"
        shapes |= _linear(name, channels, channels // DIT_GROUPS, frames + 1)
    for block in range(flow.dit_blocks):
        here = f"{at}.transformer_blocks.{block}"
        shapes |= _linear(f"{here}.attn_norm.linear", 6 * width, width)
        for projection in ("q", "k", "v"):
            shapes |= _linear(f"{here}.attn.to_{projection}", inner, width)
        shapes |= _linear(f"{here}.attn.to_out.0", width, inner)
        shapes |= _linear(f"{here}.ff.ff.0.0", flow.dit_feed_forward, width)
        shapes |= _linear(f"{here}.ff.ff.2", width, flow.dit_feed_forward)
    return shapes


def hift_shapes(hift: HiftConfig) -> Shapes:
    """Vocoder of all versions."""
    bins = hift.n_fft + 2  # real and imaginary parts
    shapes = _linear("m_source.l_linear", 1, hift.harmonics + 1)
    shapes |= _linear("conv_pre", hift.channels, hift.mels, 1 + sum(hift.first_padding))
    width = hift.channels
    for stage, kernel in enumerate(hift.up_kernels):
        half = width // 2
        up = (half, width, kernel) if hift.causal else (width, half, kernel)
        shapes |= {f"ups.{stage}.weight": up, f"ups.{stage}.bias": (half,)}
        rate = math.prod(hift.up_rates[stage + 1 :])
        shapes |= _linear(f"source_downs.{stage}", half, bins, 2 * rate if rate > 1 else 1)
        size, dilations = hift.source_kernels[stage], hift.source_dilations[stage]
        shapes |= _resblock_shapes(f"source_resblocks.{stage}", half, size, dilations)
        for branch, (size, dilations) in enumerate(zip(hift.res_kernels, hift.res_dilations, strict=True)):
            shapes |= _resblock_shapes(f"resblocks.{stage * len(hift.res_kernels) + branch}", half, size, dilations)
        width = half
    shapes |= _linear("conv_post", bins, width, 7)
    for layer, padding in enumerate(hift.f0_padding):
        fan_in = hift.f0_channels if layer else hift.mels
        shapes |= _linear(f"f0_predictor.condnet.{2 * layer}", hift.f0_channels, fan_in, 1 + sum(padding))
    return shapes | _linear("f0_predictor.classifier", 1, hift.f0_channels)


def _resblock_shapes(at: str, channels: int, kernel: int, dilations: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {}
    for layer in range(len(dilations)):
        for half in ("1", "2"):
            shapes |= _linear(f"{at}.convs{half}.{layer}", channels, channels, kernel)
            shapes[f"{at}.activations{half}.{layer}.alpha"] = (channels,)
    return shapes


def _linear(name: str, out: int, *fan_in: int, bias: bool = True) -> Shapes:
    """Linear layer, or a convolution if the last argument is a kernel size."""
    shapes: Shapes = {f"{name}.weight": (out, *fan_in)}
    return {**shapes, f"{name}.bias": (out,)} if bias else shapes


def _norm(name: str, width: int) -> Shapes:
    return _linear(name, width)
