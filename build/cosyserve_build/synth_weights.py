"""Random weights with which every stage behaves realistically."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cosyserve.config import LlmConfig, ModelConfig, TransformerConfig, expect
from cosyserve.networks.hift import Decoder, F0Predictor
from cosyserve.networks.hift_source import source_of
from cosyserve.networks.qwen2 import SpeechLM
from cosyserve.networks.transformer import Positions, RelativeLM
from cosyserve_build.bundles.bundle import StateDict
from cosyserve_build.bundles.shapes import Shapes, expected_shapes

PROMPT_TOKENS = 60  # 2.4 s
END_HAZARD = 1 / 150  # chance of the end token per step: about 9 speech tokens per text token for 20 text tokens
LOGIT_SPREAD = 2.0  # standard deviation of the logits: top_k has an effect and no token dominates
NEVER = -30.0  # logit of the other special ids, which would stop a run early
CONSTANT = 2.0  # value of the channel that replaces a bias of the head
F0_MEAN, F0_SPREAD = 170.0, 20.0  # Hz
RMS = 0.07  # of the waveform
MEL_MEAN, MEL_SPREAD = -4.0, 1.5  # of the prompt mel, roughly that of speech


def _weights(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> torch.Tensor:
    """Draw random values of four levels; an archive of them has a twelfth of the size of normal ones."""
    levels = np.array([-1.5, -0.5, 0.5, 1.5], np.float32) * np.float32(std / math.sqrt(1.25))
    return torch.from_numpy(levels[rng.integers(0, 4, shape, dtype=np.uint8)])


def _normal(rng: np.random.Generator, shape: tuple[int, ...], std: float, mean: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).mul_(std).add_(mean)


def random_state(shapes: Shapes, rng: np.random.Generator) -> StateDict:
    return {name: _random_tensor(name, shape, rng) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """Draw weights that preserve variance: a layer keeps its input's scale, a residual branch adds a fraction."""
    if name.endswith(".alpha") or (len(shape) == 1 and name.endswith("weight")):
        return torch.ones(shape)
    if name.endswith("bias"):
        return _normal(rng, shape, 0.02)
    if name.endswith("embedding.weight") or "embed_tokens" in name:
        return _weights(rng, shape, 1.0)
    if name.endswith("inv_freq"):
        return 1e4 ** -(torch.arange(shape[0]) / shape[0])
    if "pos_bias" in name:
        return _normal(rng, shape, 0.1)
    fan_in = math.prod(shape[1:])
    if name.startswith("ups.") and shape[0] > shape[1]:  # transposed: [in, out, kernel]; two taps reach each output
        fan_in = 2 * shape[0]
    branch = 0.3 if ".convs2." in name else 1.0
    return _weights(rng, shape, branch / math.sqrt(fan_in))


def write_llm(out: Path, config: ModelConfig, rng: np.random.Generator) -> None:
    """Write ``llm.pt`` of the versions with Qwen2's decoder."""
    llm = expect(LlmConfig, config.llm)
    state = random_state(expected_shapes(config, "llm"), rng)
    weight = state["llm_decoder.weight"]
    weight *= LOGIT_SPREAD
    weight[llm.end :] = 0
    if not llm.head_bias:
        _keep_constant(state)

    model = SpeechLM(llm).eval()
    outside = ("llm_embedding.", "speech_embedding.", "llm.model.model.embed_tokens.")
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith(outside)})
    tokens = torch.from_numpy(rng.integers(0, llm.speech_tokens, (1, 256)))
    empty = [torch.zeros(1, llm.kv_heads, 1, llm.head_dim) for _ in range(llm.layers)]
    hidden, *_ = model.hidden(
        state["speech_embedding.weight"][tokens], torch.zeros(1, dtype=torch.int64), empty, list(empty)
    )
    if llm.head_bias:
        bias, level = state["llm_decoder.bias"], 1.0
    else:
        bias, level = weight[:, 0], float(hidden[0, :, 0].mean())
    bias[llm.end :] = NEVER / level
    logits = hidden[0] @ weight.T + state.get("llm_decoder.bias", torch.zeros(1))
    bias[llm.eos] = _end_bias(logits.double().numpy(), llm.eos, llm.top_p, llm.top_k) / level

    state["llm.model.lm_head.weight"] = state["llm.model.model.embed_tokens.weight"]  # tied, as the official one
    torch.save(state, out / "llm.pt")


def write_transformer(out: Path, config: ModelConfig, rng: np.random.Generator) -> None:
    """Write ``llm.pt`` of CosyVoice 1."""
    llm = expect(TransformerConfig, config.llm)
    state = random_state(expected_shapes(config, "llm"), rng)
    weight, bias = state["llm_decoder.weight"], state["llm_decoder.bias"]
    weight *= LOGIT_SPREAD
    weight[llm.end :] = 0

    model, distances = RelativeLM(llm).eval(), Positions(llm).eval()
    for module in (model, distances):
        module.load_state_dict({key: state[key] for key in module.state_dict()})
    tokens = torch.from_numpy(rng.integers(0, llm.speech_tokens, (1, 256)))
    count = tokens.shape[1]
    empty = [torch.zeros(1, llm.heads, count, llm.head_dim) for _ in range(llm.layers)]
    hidden, *_ = model.hidden(
        state["speech_embedding.weight"][tokens],
        torch.zeros(1, dtype=torch.int64),
        distances(torch.arange(count)),
        empty,
        list(empty),
    )
    bias[llm.end] = _end_bias((hidden[0] @ weight.T + bias).double().numpy(), llm.end, llm.top_p, llm.top_k)
    torch.save(state, out / "llm.pt")


def _keep_constant(state: StateDict) -> None:
    """Set channel 0 of every input to a constant that no layer changes and no ordinary id's logit uses."""
    for name, tensor in state.items():
        if name.endswith(("embedding.weight", "embed_tokens.weight")):
            tensor[:, 0] = CONSTANT
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[0] = 0
    state["llm_decoder.weight"][:, 0] = 0


def _end_bias(logits: NDArray[np.float64], end: int, top_p: float, top_k: int) -> float:
    """Find the end token's logit whose chance in a nucleus draw, averaged over `logits`, is `END_HAZARD`."""
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


def hift(config: ModelConfig, rng: np.random.Generator) -> StateDict:
    """Make a random vocoder, scaled by a probe run so that pitch and loudness are those of a voice."""
    hift = config.hift
    state = random_state(expected_shapes(config, "hift"), rng)
    probe = _normal(rng, (1, hift.mels, 100), MEL_SPREAD)

    def part(prefix: str) -> StateDict:
        return {key: value for key, value in state.items() if key.startswith(prefix)}

    predictor = F0Predictor(hift).eval()
    weight, bias = state["f0_predictor.classifier.weight"], state["f0_predictor.classifier.bias"]
    bias.fill_(1000.0)  # far from zero, where the absolute value is not smooth
    predictor.load_state_dict(part("f0_predictor."))
    raw = predictor(probe) - 1000.0
    gain = F0_SPREAD / float(raw.std())
    weight *= gain
    bias.fill_(F0_MEAN - gain * float(raw.mean()))
    predictor.load_state_dict(part("f0_predictor."))

    state["m_source.l_linear.weight"].mul_(1 / hift.nsf_alpha)
    source_net = source_of(hift).eval()
    source_net.load_state_dict(part("m_source."))
    f0 = predictor(probe)
    overtones = hift.harmonics + 1
    noise = _normal(rng, (1, f0.shape[1] * hift.frame, overtones), 1.0)
    source, _ = source_net(f0, torch.zeros(1, overtones, dtype=torch.float64), torch.ones(1), noise)

    bins = hift.n_fft // 2 + 1
    magnitude = state["conv_post.bias"][:bins]
    state["conv_post.weight"][:bins] *= 0.3  # small, since exp() follows
    decoder = Decoder(hift).eval()
    decoder_state = {k: v for k, v in state.items() if not k.startswith(("f0_predictor.", "m_source."))}
    magnitude.fill_(-4.0)
    decoder.load_state_dict(decoder_state)
    magnitude += math.log(RMS / float(decoder(probe, source).square().mean().sqrt()))
    return state


def split_weight_norm(state: StateDict) -> StateDict:
    """Split every weight that upstream wraps in weight norm into gain and direction, as checkpoints have them."""
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


def voice(config: ModelConfig, prompt_ids: list[int], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Make a random stored speaker."""
    flow = config.flow
    tokens = torch.from_numpy(rng.integers(0, flow.tokens, PROMPT_TOKENS, dtype=np.int32))
    frames = int(PROMPT_TOKENS / config.token_rate * config.sample_rate / config.hift.frame)
    mel = _normal(rng, (frames, flow.mels), MEL_SPREAD, MEL_MEAN)
    return stored_speaker(prompt_ids, tokens, mel, _normal(rng, (flow.speaker,), 1.0))


def stored_speaker(
    prompt_ids: list[int], tokens: torch.Tensor, mel: torch.Tensor, embedding: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Make a stored zero-shot speaker, also usable in mode sft (upstream frontend.py :: add_zero_shot_spk).

    Args:
        prompt_ids: text ids of the prompt's transcript.
        tokens: speech tokens of the prompt, int32 [P].
        mel: of the prompt, [2 P, mels] at two frames a token.
        embedding: of the speaker, [speaker].
    """
    text = torch.tensor([prompt_ids], dtype=torch.int32)
    tokens, mel, embedding = tokens[None], mel[None], embedding[None]

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
