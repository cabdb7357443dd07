"""The language model on the device: ids go in, the likeliest ids come out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from cosyserve.config import LlmConfig, expect
from cosyserve.errors import InvalidInput
from cosyserve.networks.qwen2 import SpeechLM
from cosyserve.runtimes.buckets import BATCH
from cosyserve.runtimes.torch.cuda_graphs import CudaGraphs, bucket
from cosyserve.runtimes.torch.modules import DTYPES, fitting, load_module, prepare_device
from cosyserve.settings import Settings
from cosyserve.weights import Weights

CAPACITIES = (256, 512, 1024, 2048, 4096, 8192)
"""Positions of the past that a recorded call reads. The last holds 30 s of prompt, a transcript of some 1,000 ids, and
a segment with all the speech that its text may get; the engine cuts what goes on for longer."""

PREFILLS = (8, 16, 32, 64)
"""New positions of a recorded prefill; a longer one runs kernel by kernel."""

Ints = NDArray[np.int64]


class TorchDecoder:
    """`cosyserve.llm.decoder.Decoder` over keys and values in fixed rows on the device.

    Args:
        module: in float32, on `device`; changed to `dtype`, its head excepted.
        embeddings: all tables in the merged numbering, [ids, hidden], in `dtype`, on `device`.
        rows: most sequences in a step; there is one row more, so that two can change places.
        dtype: precision of the layers and of keys and values. Logits are float32.
    """

    def __init__(
        self,
        module: SpeechLM,
        embeddings: Tensor,
        config: LlmConfig,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._module = module.to(dtype)
        self._module.llm_decoder.float()
        self._embeddings = embeddings
        self._config = config
        self._batches = (*(step for step in BATCH if step < rows), rows)
        self.capacity = CAPACITIES[-1]
        self._scratch = rows + 1  # the last row, for what rows that only fill up a batch write
        shape = (rows + 2, config.kv_heads, CAPACITIES[-1], config.head_dim)
        self._k = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self._v = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self._step = CudaGraphs(self.run_step, device)
        self._prefill = CudaGraphs(self.run_prefill, device)

    def prefill(self, row: int, start: int, ids: Ints) -> TorchScores:
        """See `Decoder.prefill`.

        Raises:
            InvalidInput: the row is full.
        """
        new = bucket(PREFILLS, len(ids))
        padded = np.zeros((1, new), np.int64)
        padded[0, : len(ids)] = ids
        inputs = _tensors(padded, [start], [row], [len(ids) - 1])
        (logits,) = self._prefill(*inputs, capacity=_capacity(start + new))
        return TorchScores(logits.clone(), self._config)

    def step(self, ids: Ints, lengths: Ints) -> TorchScores:
        """See `Decoder.step`.

        Raises:
            InvalidInput: a row is full.
        """
        count = len(ids)
        batch = bucket(self._batches, count)
        fed, places, rows = np.zeros((batch, 1), np.int64), np.zeros(batch, np.int64), np.full(batch, self._scratch)
        fed[:count, 0], places[:count], rows[:count] = ids, lengths, np.arange(count)
        (logits,) = self._step(*_tensors(fed, places, rows), capacity=_capacity(int(lengths.max()) + 1))
        return TorchScores(logits[:count].clone(), self._config)

    def move(self, source: int, target: int, length: int) -> None:
        """See `Decoder.move`."""
        for part in (*self._k, *self._v):
            part[target, :, :length] = part[source, :, :length]

    def release(self, row: int) -> None:
        """See `Decoder.release`."""
        for part in (*self._k, *self._v):
            part[row] = 0

    def record(self) -> None:
        """Record the ladder."""
        for capacity in reversed(CAPACITIES):
            for batch in reversed(self._batches):
                nobody = _tensors(np.zeros((batch, 1), np.int64), [0] * batch, [self._scratch] * batch)
                self._step.record(*nobody, capacity=capacity)
            for new in reversed(PREFILLS):
                nobody = _tensors(np.zeros((1, new), np.int64), [0], [self._scratch], [0])
                self._prefill.record(*nobody, capacity=capacity)

    def run_step(self, ids: Tensor, lengths: Tensor, rows: Tensor, *, capacity: int) -> tuple[Tensor]:
        # The first rows are read where they lie.
        past_k, past_v = ([part[: len(ids), :, :capacity] for part in kept] for kept in (self._k, self._v))
        return (self._logits(self._hidden(ids, lengths, rows, past_k, past_v)[:, 0]),)

    def run_prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor, last: Tensor, *, capacity: int) -> tuple[Tensor]:
        past_k, past_v = ([part[:, :, :capacity].index_select(0, rows) for part in kept] for kept in (self._k, self._v))
        hidden = self._hidden(ids, lengths, rows, past_k, past_v)
        return (self._logits(hidden.index_select(1, last)[:, 0]),)

    def _hidden(self, ids: Tensor, lengths: Tensor, rows: Tensor, past_k: list[Tensor], past_v: list[Tensor]) -> Tensor:
        """Hidden states [B, T, H] of ids [B, T] behind `lengths` positions; their keys and values go to `rows`."""
        hidden, new_k, new_v = self._module.hidden(F.embedding(ids, self._embeddings), lengths, past_k, past_v)
        places = lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
        for kept, new in zip((*self._k, *self._v), (*new_k, *new_v), strict=True):
            kept[rows[:, None], :, places] = new.transpose(1, 2)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._module.llm_decoder(hidden.float())
        return logits


class TorchScores:
    """`cosyserve.llm.decoder.Scores` on the device: only what is asked for crosses to the host.

    Args:
        logits: float32 [n, V].
    """

    def __init__(self, logits: Tensor, config: LlmConfig) -> None:
        self._logits = logits
        self._end = config.end

    def top(self, k: int, held: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.float64]]:
        """See `Scores.top`."""
        device = self._logits.device
        stops = torch.arange(self._logits.shape[1], device=device) >= self._end
        forbidden = torch.from_numpy(held).to(device)[:, None] & stops
        probabilities = self._logits.double().masked_fill(forbidden, float("-inf")).softmax(-1)
        # topk leaves the order of ties open.
        probabilities, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        return ids[:, :k].cpu().numpy(), probabilities[:, :k].cpu().numpy()

    def row(self, index: int) -> NDArray[np.float32]:
        """See `Scores.row`."""
        logits: NDArray[np.float32] = self._logits[index].cpu().numpy()
        return logits


@fitting()
def load_decoder(weights: Weights, settings: Settings) -> TorchDecoder:
    """The language model with its weights, recorded."""
    config, device, dtype = expect(LlmConfig, weights.config.llm), prepare_device(settings), DTYPES[settings.precision]
    tables = load_file(weights.file("llm.safetensors"))
    merged = torch.cat([tables[name].to(dtype) for name in ("text", "speech", "special")]).to(device)
    module = load_module(lambda: SpeechLM(config), weights, "llm", device)
    decoder = TorchDecoder(module, merged, config, settings.llm_slots, dtype, device)
    decoder.record()
    return decoder


def _capacity(positions: int) -> int:
    if positions > CAPACITIES[-1]:
        raise InvalidInput("text", f"with its prompt exceeds {CAPACITIES[-1]} positions")
    return bucket(CAPACITIES, positions)


def _tensors(*arrays: ArrayLike) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(array, np.int64)) for array in arrays]
