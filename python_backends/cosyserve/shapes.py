"""Names and shapes of the tensors that a CosyVoice2 model of given sizes consists of."""

from __future__ import annotations

import math

from cosyserve.config import FlowConfig, ModelConfig

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(config: ModelConfig, part: str) -> Shapes:
    """Name and shape of every tensor of a part, as `Bundle.llm`, `Bundle.flow` and `Bundle.hift` return them.

    Args:
        part: ``llm``, ``flow`` or ``hift`` (weight norm folded).
    """
    return {"llm": _llm_shapes, "flow": _flow_shapes, "hift": _hift_shapes}[part](config)


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
        for name, width in (("q", queries), ("k", keys), ("v", keys)):
            shapes |= _linear(f"{at}.self_attn.{name}_proj", width, llm.hidden)
        shapes |= _linear(f"{at}.self_attn.o_proj", llm.hidden, queries, bias=False)
        for name in ("gate", "up"):
            shapes |= _linear(f"{at}.mlp.{name}_proj", llm.intermediate, llm.hidden, bias=False)
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
        rate = math.prod(hift.up_rates[stage + 1 :])
        shapes |= _linear(f"source_downs.{stage}", half, bins, 2 * rate if rate > 1 else 1)
        size, dilations = hift.source_kernels[stage], hift.source_dilations[stage]
        shapes |= _resblock_shapes(f"source_resblocks.{stage}", half, size, dilations)
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


def _linear(name: str, out: int, *fan_in: int, bias: bool = True) -> Shapes:
    """A linear layer, or with a kernel size as last argument a convolution."""
    shapes: Shapes = {f"{name}.weight": (out, *fan_in)}
    return {**shapes, f"{name}.bias": (out,)} if bias else shapes


def _norm(name: str, width: int) -> Shapes:
    return _linear(name, width)
