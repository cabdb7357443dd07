"""The torch networks against the tensors recorded from the original implementation."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cosyserve.config import HiftConfig, LlmConfig, UNetFlowConfig
from cosyserve.networks.flow_encoder import FlowEncoder
from cosyserve.networks.guided import Cache, Part
from cosyserve.networks.hift import Decoder, F0Predictor
from cosyserve.networks.hift_source import HarmonicSource
from cosyserve.networks.qwen2 import SpeechLM
from cosyserve.networks.unet import GuidedFlow
from cosyserve_build.bundles.bundle import read

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"

CONFIG = read(TINY / "bundle").config
LLM, FLOW, HIFT = cast(LlmConfig, CONFIG.llm), cast(UNetFlowConfig, CONFIG.flow), cast(HiftConfig, CONFIG.hift)


@functools.cache
def state(name: str, *prefixes: str) -> dict[str, Tensor]:
    """The entries of a bundle's state dict under the given prefixes, weight norm folded."""
    raw: dict[str, Tensor] = torch.load(TINY / "bundle" / f"{name}.pt", weights_only=True)
    tensors = {}
    for key, value in raw.items():
        if key.endswith("original1"):
            continue
        plain = key.replace("parametrizations.weight.original0", "weight")
        if plain != key:
            direction = raw[key.replace("original0", "original1")]
            value = value * direction / direction.norm(dim=(1, 2), keepdim=True)
        if plain.startswith(prefixes):
            tensors[plain] = value
    return tensors


@functools.cache
def recorded(name: str) -> dict[str, npt.NDArray[np.generic]]:
    with np.load(TINY / "vectors" / f"{name}.npz") as file:
        return dict(file)


def vector(name: str, key: str) -> Tensor:
    return torch.from_numpy(recorded(name)[key])


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def lm() -> SpeechLM:
    model = SpeechLM(LLM)
    model.load_state_dict(state("llm", "llm.model.model.layers", "llm.model.model.norm", "llm_decoder"))
    return model


@pytest.fixture(scope="module")
def encoder() -> FlowEncoder:
    model = FlowEncoder(FLOW)
    model.load_state_dict(state("flow", "input_embedding", "encoder"))
    return model


@pytest.fixture(scope="module")
def flow() -> GuidedFlow:
    model = GuidedFlow(FLOW)
    model.load_state_dict(state("flow", "decoder", "spk_embed_affine_layer"))
    return model


@pytest.fixture(scope="module")
def source() -> HarmonicSource:
    model = HarmonicSource(HIFT)
    model.load_state_dict(state("hift", "m_source"))
    return model


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    model = Decoder(HIFT)
    keys = ("conv_pre", "ups", "source_downs", "source_resblocks", "resblocks", "conv_post")
    model.load_state_dict(state("hift", *keys))
    return model


# Language model


class SlotCache:
    """Keys/values of some sequences in slots of fixed capacity, the free part full of garbage."""

    def __init__(self, batch: int, capacity: int) -> None:
        shape = (batch, LLM.kv_heads, capacity, LLM.head_dim)
        self.k = [torch.full(shape, 3e4) for _ in range(LLM.layers)]
        self.v = [torch.full(shape, -3e4) for _ in range(LLM.layers)]
        self.lengths = torch.zeros(batch, dtype=torch.int64)

    def add(self, row: int, new_k: list[Tensor], new_v: list[Tensor], source_row: int = 0) -> None:
        start, count = int(self.lengths[row]), new_k[0].shape[2]
        for kept, new in zip(self.k + self.v, new_k + new_v, strict=True):
            kept[row, :, start : start + count] = new[source_row]
        self.lengths[row] += count


def test_lm_prefill_hidden_states(lm: SpeechLM) -> None:
    empty = SlotCache(1, 1)
    hidden, _, _ = lm.hidden(vector("llm", "lm_input"), empty.lengths, empty.k, empty.v)
    close(hidden, vector("llm", "hidden_prefill"), 1e-4)


@pytest.mark.parametrize("piece", [124, 50, 1])
def test_lm_greedy_logits(lm: SpeechLM, piece: int) -> None:
    """However the prefill is cut, and in a cache with room to spare."""
    embedding = state("llm", "speech_embedding")["speech_embedding.weight"]
    expected, tokens = vector("llm", "logits"), vector("llm", "greedy_tokens").long()
    cache = SlotCache(1, 160)
    inputs = [*torch.split(vector("llm", "lm_input"), piece, dim=1), *embedding[tokens[:20], None, None].unbind()]
    outputs = []
    for embeds in inputs:
        logits, new_k, new_v = lm(embeds.view(1, -1, LLM.hidden), cache.lengths, cache.k, cache.v)
        cache.add(0, new_k, new_v)
        outputs.append(logits)
    close(torch.cat(outputs[-21:]), expected, 1e-4)


def test_lm_rows_of_different_lengths_do_not_mix(lm: SpeechLM) -> None:
    embeds = vector("llm", "lm_input")
    cache = SlotCache(2, 130)
    for row, count in enumerate((123, 40)):
        empty = SlotCache(1, 1)
        _, new_k, new_v = lm(embeds[:, :count], empty.lengths, empty.k, empty.v)
        cache.add(row, new_k, new_v)
    logits, _, _ = lm(torch.cat([embeds[:, 123:124], embeds[:, 40:41]]), cache.lengths, cache.k, cache.v)
    alone = SlotCache(1, 1)
    short, _, _ = lm(embeds[:, :41], alone.lengths, alone.k, alone.v)
    close(logits[0], vector("llm", "logits")[0], 1e-4)
    close(logits[1], short[0], 1e-4)


# Flow


def encode(
    encoder: FlowEncoder, tokens: Tensor, chunk: int, *, final: bool = True, unused: int = 0
) -> tuple[Tensor, Tensor]:
    """Hidden states before the projection, and mu, of tokens [1, M], chunk by chunk.

    Args:
        final: otherwise the last tokens are only context.
        unused: positions of garbage before the past.
    """
    ahead, dk = FLOW.lookahead, FLOW.width // FLOW.heads
    ratios = [1] * FLOW.blocks + [FLOW.ratio] * FLOW.up_blocks
    total = tokens.shape[1] if final else tokens.shape[1] - ahead
    padded = torch.cat([tokens, torch.full((1, ahead), -1)], dim=1)
    valid = (torch.arange(padded.shape[1])[None] < tokens.shape[1]).float()
    conv_tail, up_tail = torch.zeros(1, FLOW.width, 2), torch.zeros(1, FLOW.width, 2 * FLOW.ratio)
    past_k = [torch.full((1, FLOW.heads, ratio * unused, dk), 3e4) for ratio in ratios]
    past_v = [-k for k in past_k]
    hidden: list[Tensor] = []
    mu = []
    hook = encoder.encoder_proj.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    for start in range(0, total, chunk):
        end = min(start + chunk, total)
        length = torch.tensor([start])
        ids, context = padded[:, start:end], padded[:, end : end + ahead]
        inputs = (ids, context, valid[:, end : end + ahead], length, conv_tail, up_tail)
        m, conv_tail, up_tail, new_k, new_v = encoder(*inputs, past_k, past_v)
        past_k = [torch.cat(pair, dim=2) for pair in zip(past_k, new_k, strict=True)]
        past_v = [torch.cat(pair, dim=2) for pair in zip(past_v, new_v, strict=True)]
        mu.append(m)
    hook.remove()
    return torch.cat(hidden, dim=1), torch.cat(mu, dim=2)


@pytest.mark.parametrize(
    ("case", "tokens", "chunk", "final"),
    [
        ("chunk0", 35, FLOW.chunk, False),
        ("full_stream", 138, FLOW.chunk, True),
        ("full_offline", 138, 10_000, True),
    ],
)
@pytest.mark.parametrize("unused", [0, 7])
def test_encoder(encoder: FlowEncoder, case: str, tokens: int, chunk: int, final: bool, unused: int) -> None:
    ids = torch.cat([vector("flow", "prompt_token"), vector("flow", "token")[:, :tokens]], dim=1).long()
    hidden, mu = encode(encoder, ids, chunk, final=final, unused=unused)
    close(hidden, vector("flow", f"{case}_encoder_out"), 1e-4)
    close(mu, vector("flow", f"{case}_mu"), 1e-4)


def test_encoder_reads_row_zero_for_negative_tokens(encoder: FlowEncoder) -> None:
    _, negative = encode(encoder, torch.tensor([[5, -7, 9]]), FLOW.chunk)
    _, zero = encode(encoder, torch.tensor([[5, 0, 9]]), FLOW.chunk)
    assert torch.equal(negative, zero)


def test_encoder_rows_of_different_lengths_do_not_mix(encoder: FlowEncoder) -> None:
    """The longer past fills the capacity; the shorter one is at the end of the same capacity, after garbage."""
    random = torch.Generator().manual_seed(0)
    dk, room, lengths = FLOW.width // FLOW.heads, 10, torch.tensor([10, 4])
    tokens, context = torch.arange(40).view(2, 20), torch.arange(6).view(2, 3)
    valid = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    conv_tail = torch.randn(2, FLOW.width, 2, generator=random)
    up_tail = torch.randn(2, FLOW.width, 2 * FLOW.ratio, generator=random)
    ratios = [1] * FLOW.blocks + [FLOW.ratio] * FLOW.up_blocks
    past_k, past_v = (
        [torch.randn(2, FLOW.heads, ratio * room, dk, generator=random) for ratio in ratios] for _ in range(2)
    )
    together, *_ = encoder(tokens, context, valid, lengths, conv_tail, up_tail, past_k, past_v)
    for row in range(2):
        one, length = slice(row, row + 1), int(lengths[row])
        own = [
            [array[one, :, array.shape[2] - ratio * length :] for array, ratio in zip(past, ratios, strict=True)]
            for past in (past_k, past_v)
        ]
        inputs = (tokens[one], context[one], valid[one], lengths[one], conv_tail[one], up_tail[one])
        alone, *_ = encoder(*inputs, *own)
        close(together[one], alone, 1e-5)


class Room:
    """Keys and values of some frames in room for ``capacity`` frames, the free part full of garbage."""

    def __init__(self, rows: int, capacity: int) -> None:
        shape = (capacity, rows, FLOW.unet_heads, FLOW.unet_head_dim)
        self.k = [torch.full(shape, 3e4) for _ in range(FLOW.attentions)]
        self.v = [torch.full(shape, -3e4) for _ in range(FLOW.attentions)]
        self.length = 0

    def add(self, new_k: list[Tensor], new_v: list[Tensor]) -> None:
        end = self.length + new_k[0].shape[0]
        for kept, new in zip(self.k + self.v, new_k + new_v, strict=True):
            kept[self.length : end] = new
        self.length = end

    def part(self) -> Part:
        return Part(self.k, self.v, torch.full((self.k[0].shape[1],), self.length))


def no_tails(rows: int) -> list[Tensor]:
    return [torch.zeros(rows, *tail) for tail in FLOW.tails]


def estimate(flow: GuidedFlow, chunk: int, prompt: Room, past: Room, prompt_frames: int = 0) -> Tensor:
    """Velocity of the recorded utterance, chunk by chunk; the first frames go to `prompt`, the others to `past`."""
    estimator = flow.decoder["estimator"]
    x, mu, cond = (vector("flow", f"est_{name}") for name in ("x", "mu", "cond"))
    t, speaker = vector("flow", "est_t"), vector("flow", "est_spks")
    tails = no_tails(2)
    out = []
    for start in range(0, x.shape[2], chunk):
        piece = slice(start, start + chunk)
        cache = Cache(prompt.part(), past.part(), tails)
        out.append(estimator(x[:, :, piece], mu[:, :, piece], t, speaker, cond[:, :, piece], cache))
        tails = cache.new_tails
        if start + chunk < x.shape[2]:
            (prompt if start < prompt_frames else past).add(cache.new_k, cache.new_v)
    return torch.cat(out, dim=2)


@pytest.mark.parametrize("capacity", [1, 3])
def test_estimator_whole_utterance(flow: GuidedFlow, capacity: int) -> None:
    velocity = estimate(flow, 250, Room(2, capacity), Room(2, capacity))
    close(velocity, vector("flow", "est_out_offline"), 1e-4)


@pytest.mark.parametrize("prompt_frames", [0, 50, 150, 250])
def test_estimator_chunk_by_chunk_wherever_the_prompt_ends(flow: GuidedFlow, prompt_frames: int) -> None:
    velocity = estimate(flow, FLOW.unet_chunk, Room(2, 210), Room(2, 203), prompt_frames)
    close(velocity, vector("flow", "est_out_streaming"), 1e-4)


def test_guided_velocity_mixes_the_two_rows(flow: GuidedFlow) -> None:
    """Two identical streams: guidance must pair row b with row B + b."""
    x, mu, cond = (vector("flow", f"est_{name}")[:1].expand(2, -1, -1) for name in ("x", "mu", "cond"))
    t, embedding = vector("flow", "est_t"), vector("flow", "spk_raw").expand(2, -1)
    prompt, past = Room(4, 2), Room(4, 1)
    nothing = torch.zeros(2, dtype=torch.int64)
    velocity, tails, new_k, _ = flow(
        x, mu, cond, embedding, t, nothing, nothing, no_tails(4), prompt.k, prompt.v, past.k, past.v
    )
    conditional, unconditional = vector("flow", "est_out_offline")
    expected = 1.7 * conditional - 0.7 * unconditional
    close(velocity, torch.stack([expected, expected]), 2e-4)
    assert new_k[0].shape == (250, 4, FLOW.unet_heads, FLOW.unet_head_dim)
    assert [tuple(tail.shape) for tail in tails] == [(4, *tail) for tail in FLOW.tails]


def test_streams_of_different_pasts_do_not_mix(flow: GuidedFlow) -> None:
    """Each of two streams in one call: its own lengths, in both parts of the past, and both of its rows."""
    random = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    lengths = torch.tensor([[5, 0], [2, 9]])  # of the prompt, and of the past after it
    x, mu, cond, embedding, t = noise(2, 80, 6), noise(2, 80, 6), noise(2, 80, 6), noise(2, 192), torch.rand(2)
    tails = [noise(4, *tail) for tail in FLOW.tails]
    kept = [
        [noise(room, 4, FLOW.unet_heads, FLOW.unet_head_dim) for _ in range(FLOW.attentions)] for room in (5, 5, 9, 9)
    ]
    together, _, _, _ = flow(x, mu, cond, embedding, t, lengths[:, 0], lengths[:, 1], tails, *kept)
    for stream in range(2):
        one, rows = slice(stream, stream + 1), slice(stream, None, 2)
        own = [[array[:, rows] for array in layers] for layers in kept]
        inputs = (x[one], mu[one], cond[one], embedding[one], t[one], lengths[one, 0], lengths[one, 1])
        alone, _, _, _ = flow(*inputs, [tail[rows] for tail in tails], *own)
        close(together[one], alone, 1e-5)


# Vocoder


def test_f0() -> None:
    predictor = F0Predictor(HIFT)
    predictor.load_state_dict(state("hift", "f0_predictor"))
    close(predictor(vector("hift", "mel")), vector("hift", "f0").double(), 1e-2)


def test_source_from_recorded_pitch_and_noise(source: HarmonicSource) -> None:
    f0, noise = vector("hift", "f0"), vector("hift", "noise")
    phase = torch.zeros(1, HIFT.harmonics + 1, dtype=torch.float64)
    actual, phases = source(f0, phase, torch.ones(1), noise)
    close(actual, vector("hift", "source"), 1e-3)
    assert phases.dtype == torch.float64
    assert 0 <= float(phases.min()) <= float(phases.max()) < 1


@pytest.mark.parametrize("first", [1, 2, 17, 59])
def test_source_in_two_calls_equals_one(source: HarmonicSource, first: int) -> None:
    """The newest frame of a call is rendered again by the next one, which knows its right neighbour."""
    f0 = 150 + 100 * torch.sin(torch.arange(60) / 7)[None]
    noise, frame = vector("hift", "noise"), HIFT.frame
    zero, begin = torch.zeros(1, HIFT.harmonics + 1, dtype=torch.float64), torch.ones(1)
    whole, whole_phases = source(f0, zero, begin, noise)

    head, phases = source(f0[:, :first], zero, begin, noise[:, : first * frame])
    again = first - 1
    before, start = (phases[:, again - 1], torch.zeros(1)) if again else (zero, begin)
    tail, tail_phases = source(f0[:, again:], before, start, noise[:, again * frame :])

    settled = again * frame + frame // 2
    close(head[..., :settled], whole[..., :settled], 1e-6)
    close(tail, whole[..., again * frame :], 1e-6)
    turns = tail_phases - whole_phases[:, again:]
    assert float((turns - turns.round()).abs().max()) < 1e-9


def test_wave_from_recorded_source(decoder: Decoder) -> None:
    close(decoder(vector("hift", "mel"), vector("hift", "source")), vector("hift", "wav"), 1e-5)


def test_stft_pair_equals_torch(decoder: Decoder) -> None:
    signal = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    window = torch.hann_window(HIFT.n_fft)
    expected = torch.stft(signal, HIFT.n_fft, HIFT.hop, window=window, return_complex=True)
    spectrum = decoder.stft.analyse(signal[:, None])
    close(spectrum, torch.cat([expected.real, expected.imag], dim=1), 1e-5)

    # Not the spectrum of any signal, so that the inverse's treatment of bins 0 and n/2 shows.
    real, imaginary = cast("tuple[Tensor, Tensor]", (spectrum + 0.5).chunk(2, dim=1))
    back = torch.istft(torch.complex(real, imaginary), HIFT.n_fft, HIFT.hop, window=window)
    close(decoder.stft.synthesise(real, imaginary), back, 1e-5)
