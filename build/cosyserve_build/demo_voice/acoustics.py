"""Train the flow, speech tokens to mel, by conditional flow matching.

Some steps run chunk by chunk with a KV cache, as the server streams, the others in one piece.

Source: Lipman et al., 2022; upstream flow/flow_matching.py :: ConditionalCFM.compute_loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import UNetFlowConfig
from cosyserve.networks.flow_encoder import FlowEncoder
from cosyserve.networks.guided import Cache, Part
from cosyserve.networks.unet import GuidedFlow
from cosyserve_build.demo_voice.codebook import used_ids
from cosyserve_build.demo_voice.source import Recording
from cosyserve_build.demo_voice.training import Run, device, train

FLOW = Run("flow", steps=6_000, rate=1e-3, warmup=300, average=0.998, half=True)
_SHORT, _LONG = (8, 75), (3, 200)  # windows of a step, tokens of a window
_LONGER = 0.3  # share of steps with long windows, as long as prompts and long sentences
_CHUNKS = (15, 25, 50)  # tokens of a chunk in streaming
_STREAMED = 0.4  # share of steps that run chunk by chunk
_DROPPED = 0.2  # share of rows without any condition, for guidance
_PROMPTED = 0.5  # share of rows whose first part is condition, like a prompt's mel
_LONGEST_PROMPT = 0.5  # largest share of a window that is prompt
_TALK = 8  # utterances of a voice in a row
_FLOOR = -9.0  # lower bound of the log-mel targets: anything below is inaudible
_MELS_FROM_MU = 0.3  # weight of the loss of a linear layer that predicts the mel from mu


class Flow(nn.Module):
    """Encoder and estimator, and a linear layer that only training uses."""

    def __init__(self, config: UNetFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.guided = FlowEncoder(config), GuidedFlow(config)
        self.plain = nn.Linear(2 * config.mels, config.mels)

    def states(self) -> dict[str, Tensor]:
        """State dict of ``flow.pt``; embeddings of tokens that the codebook does not use are zeros."""
        state = {**self.encoder.state_dict(), **self.guided.state_dict()}
        embedding = torch.zeros_like(state["input_embedding.weight"])
        used = torch.from_numpy(used_ids())
        embedding[used] = state["input_embedding.weight"][used]
        return state | {"input_embedding.weight": embedding}

    def encode(self, tokens: Tensor, ahead: Tensor, valid: Tensor, chunk: int) -> Tensor:
        """Encode tokens [B, N], with look-ahead [B, L] of which `valid` exists, to mu [B, mels, ratio * N]."""
        config, rows = self.config, len(tokens)
        layers, dim = config.blocks + config.up_blocks, config.width // config.heads
        none = tokens.new_zeros((rows, config.heads, 0, dim), dtype=torch.float32)
        past_k, past_v = [none] * layers, [none] * layers
        tails = [none.new_zeros(rows, config.width, n) for n in (2, 2 * config.ratio)]
        following = torch.cat([tokens, ahead], dim=1)
        known = torch.cat([torch.ones_like(tokens, dtype=torch.float32), valid], dim=1)
        pieces = []
        for start in range(0, tokens.shape[1], chunk):
            stop = min(start + chunk, tokens.shape[1])
            length = torch.full((rows,), start, device=tokens.device)
            look = slice(stop, stop + config.lookahead)
            mu, *tails, new_k, new_v = self.encoder(
                tokens[:, start:stop], following[:, look], known[:, look], length, *tails, past_k, past_v
            )
            past_k = [torch.cat(pair, dim=2) for pair in zip(past_k, new_k, strict=True)]
            past_v = [torch.cat(pair, dim=2) for pair in zip(past_v, new_v, strict=True)]
            pieces.append(mu)
        return torch.cat(pieces, dim=2)

    def velocity(self, x: Tensor, mu: Tensor, t: Tensor, speaker: Tensor, cond: Tensor, chunk: int) -> Tensor:
        """Estimate the velocity [B, mels, T] without guidance, `chunk` frames at a time."""
        rows, (layers, heads, dim) = len(x), self.config.attention
        none = [x.new_zeros(0, rows, heads, dim)] * layers
        k, v = none, none
        tails = [x.new_zeros(rows, *tail) for tail in self.config.tails]
        pieces = []
        for start in range(0, x.shape[2], chunk):
            part = slice(start, start + chunk)
            cache = Cache(_known(none, none), _known(k, v), tails)
            pieces.append(
                self.guided.decoder["estimator"](x[:, :, part], mu[:, :, part], t, speaker, cond[:, :, part], cache)
            )
            tails = cache.new_tails
            k, v = _joined(k, cache.new_k), _joined(v, cache.new_v)
        return torch.cat(pieces, dim=2)


def _known(k: list[Tensor], v: list[Tensor]) -> Part:
    """Wrap a KV cache of which every frame is valid."""
    frames, rows, *_ = k[0].shape
    return Part(k, v, torch.full((rows,), frames, device=k[0].device))


def _joined(past: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [torch.cat(pair) for pair in zip(past, new, strict=True)]


@dataclass(frozen=True)
class Talk:
    """Utterances of one voice in a row; N tokens.

    Attributes:
        tokens: [N].
        mel: [2 N, mels].
        embedding: speaker vector, [192].
    """

    tokens: NDArray[np.int64]
    mel: NDArray[np.float32]
    embedding: NDArray[np.float32]

    @classmethod
    def of(cls, said: list[Recording], embedding: NDArray[np.float32]) -> Talk:
        """Concatenate utterances."""
        tokens = np.concatenate([u.tokens for u in said]).astype(np.int64)
        return cls(tokens, np.concatenate([u.mel for u in said]).astype(np.float32), embedding)


def in_a_row(said: list[Recording]) -> list[list[Recording]]:
    """Group the utterances of a voice into lists of `_TALK`."""
    return [said[i : i + _TALK] for i in range(0, len(said), _TALK)]


class Talks:
    """Random training windows of the voices' talks.

    Args:
        talks: of all speakers; those shorter than a window are left out.
        lookahead: tokens after a window that the encoder reads.
    """

    def __init__(self, talks: list[Talk], lookahead: int) -> None:
        self._lookahead = lookahead
        self._talks = [talk for talk in talks if len(talk.tokens) >= _LONG[1] + lookahead]

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Draw tokens [B, N], look-ahead [B, L], its validity [B, L], mel [B, mels, 2 N], embedding [B, 192]."""
        count, window = _LONG if rng.random() < _LONGER else _SHORT
        rows: list[tuple[NDArray[Any], ...]] = []
        for index in rng.integers(0, len(self._talks), count):
            talk = self._talks[index]
            start = int(rng.integers(0, len(talk.tokens) - window - self._lookahead + 1))
            stop = start + window
            exists = np.full(self._lookahead, float(rng.random() > 0.1), np.float32)
            heard = talk.mel[2 * start : 2 * stop].T
            rows.append((talk.tokens[start:stop], talk.tokens[stop:][: self._lookahead], exists, heard, talk.embedding))
        columns = [torch.from_numpy(np.stack(column)).to(device()) for column in zip(*rows, strict=True)]
        tokens, ahead, valid, mel, embedding = columns
        return tokens, ahead, valid, mel, embedding


def train_flow(folder: Path, config: UNetFlowConfig, talks: Talks, run: Run = FLOW) -> Flow:
    """Train the flow on windows of the corpus."""
    torch.manual_seed(run.seed)
    flow = Flow(config).to(device())

    def loss(rng: np.random.Generator, _: float) -> Tensor:
        tokens, ahead, valid, mel, embedding = talks.draw(rng)
        rows, _, frames = mel.shape
        chunk = int(rng.choice(_CHUNKS)) if rng.random() < _STREAMED else tokens.shape[1]
        mu, speaker = flow.encode(tokens, ahead, valid, chunk), flow.guided.speaker(embedding)
        wanted = mel.clamp(min=_FLOOR)
        read = flow.plain(torch.cat([mu, speaker[:, :, None].expand_as(mu)], dim=1).mT).mT
        value = _MELS_FROM_MU * F.l1_loss(read.float(), wanted)

        prompted = rng.integers(0, int(_LONGEST_PROMPT * frames), rows) * (rng.random(rows) < _PROMPTED)
        given = torch.arange(frames, device=mel.device) < torch.from_numpy(prompted).to(mel.device)[:, None]
        kept = torch.from_numpy((rng.random(rows) >= _DROPPED).astype(np.float32)).to(mel.device)[:, None, None]
        cond = mel * given[:, None]
        # The solver's cosine grid has most of its steps at small times; training samples them likewise.
        t = torch.from_numpy(1 - np.cos(0.5 * np.pi * rng.random(rows, np.float32))).float().to(mel.device)
        noise = torch.from_numpy(rng.standard_normal(mel.shape, np.float32)).to(mel.device)
        at = t[:, None, None]
        v = flow.velocity(
            (1 - at) * noise + at * wanted, kept * mu, t, kept[:, :, 0] * speaker, kept * cond, config.ratio * chunk
        )
        return value + F.mse_loss(v.float(), wanted - noise)

    train(folder, run, flow, loss)
    return flow
