"""The language model on the device: ids go in, the likeliest ids come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from cosyserve.config import LlmConfig, expect
from cosyserve.errors import InvalidInput
from cosyserve.limits import PREFILL_CHUNK
from cosyserve.networks.qwen2 import SpeechLM
from cosyserve.runtimes.buckets import BATCH, bucket
from cosyserve.runtimes.memory import LLM_POSITIONS
from cosyserve.runtimes.torch.cuda_graphs import CudaGraphs
from cosyserve.runtimes.torch.modules import DTYPES, fitting, load_module, prepare_device
from cosyserve.settings import Settings
from cosyserve.weights import Weights

CAPACITIES = (256, 512, 1024, 2048, LLM_POSITIONS)
"""Positions of the past that a recorded call reads; the engine cuts what goes on for longer than the last."""

PREFILLS = (8, 16, 32, 64, 128, 256, 512)
"""New positions of a recorded prefill, up to those that the device takes at once."""

PREFILL_BATCHES = (1, 4)
"""Prompts in a recorded prefill. Several together are padded to one of `PREFILLS_TOGETHER`, to record less."""

PREFILLS_TOGETHER = (64, 256, 512)

GPU_PREFILL_CHUNK = PREFILLS[-1]
"""On a GPU 512 positions take about as long as 64: what counts are launches."""

Ints = NDArray[np.int64]


class TorchDecoder:
    """`cosyserve.llm.decoder.Decoder` over keys and values in fixed rows on the device.

    Args:
        module: in float32, on `device`; changed to `dtype`, its head excepted.
        embeddings: all tables in the merged numbering, [ids, hidden], in `dtype`, on `device`.
        rows: most sequences in a step; there is one row more, so that two can change places.
        dtype: precision of the layers and of keys and values. Logits are float32.
        graphs: whether calls may be recorded.
    """

    def __init__(
        self,
        module: SpeechLM,
        embeddings: Tensor,
        config: LlmConfig,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        graphs: bool = True,
    ) -> None:
        self._module = module.to(dtype)
        self._module.llm_decoder.float()
        self._embeddings = embeddings
        self._config = config
        self._batches = (*(step for step in BATCH if step < rows), rows)
        self.capacity = CAPACITIES[-1]
        on_gpu = device.type == "cuda"
        self.prefill_chunk = GPU_PREFILL_CHUNK if on_gpu else PREFILL_CHUNK
        self.prefill_batch = PREFILL_BATCHES[-1] if on_gpu else 1
        self._scratch = rows + 1  # the last row, for what rows that only fill up a batch write
        # Keys of each layer, then values, in one piece of memory: a row is moved or emptied in one launch.
        shape = (2 * config.layers, rows + 2, config.kv_heads, CAPACITIES[-1], config.head_dim)
        self._memory = torch.zeros(shape, dtype=dtype, device=device)
        self._top = CudaGraphs(self.run_top, device, enabled=graphs)
        self._step = CudaGraphs(self.run_step, device, enabled=graphs)
        self._prefill = CudaGraphs(self.run_prefill, device, enabled=graphs)

    def prefill(self, row: int, start: int, ids: Ints) -> TorchScores:
        """See `Decoder.prefill`.

        Raises:
            InvalidInput: the row is full.
        """
        return self.prefill_together([row], [start], [ids])

    def prefill_together(self, rows: Sequence[int], starts: Sequence[int], prompts: Sequence[Ints]) -> TorchScores:
        """See `Decoder.prefill_together`.

        Raises:
            InvalidInput: a row is full.
        """
        count = len(rows)
        new = bucket(PREFILLS if count == 1 else PREFILLS_TOGETHER, max(map(len, prompts)))
        batch = bucket(PREFILL_BATCHES, count)
        padded, behind, last = np.zeros((batch, new), np.int64), np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        places = np.full(batch, self._scratch)
        places[:count], behind[:count] = rows, starts
        for row, ids in enumerate(prompts):
            padded[row, : len(ids)] = ids
            last[row] = len(ids) - 1
        inputs = _tensors(padded, behind, places, last)
        (logits,) = self._prefill(*inputs, capacity=_capacity(max(starts) + new))
        return TorchScores(logits.clone(), count, self._top)

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
        return TorchScores(logits.clone(), count, self._top)

    def move(self, source: int, target: int, length: int) -> None:
        """See `Decoder.move`."""
        self._memory[:, target, :, :length] = self._memory[:, source, :, :length]

    def release(self, row: int) -> None:
        """See `Decoder.release`."""
        self._memory[:, row] = 0

    def record(self) -> None:
        """Record the ladder."""
        for capacity in reversed(CAPACITIES):
            for batch in reversed(self._batches):
                nobody = _tensors(np.zeros((batch, 1), np.int64), [0] * batch, [self._scratch] * batch)
                self._step.record(*nobody, capacity=capacity)
            for batch in reversed([batch for batch in PREFILL_BATCHES if batch <= self.prefill_batch]):
                for new in reversed(PREFILLS if batch == 1 else PREFILLS_TOGETHER):
                    if new <= min(self.prefill_chunk, capacity):
                        zeros = [0] * batch
                        nobody = _tensors(np.zeros((batch, new), np.int64), zeros, [self._scratch] * batch, zeros)
                        self._prefill.record(*nobody, capacity=capacity)
        for batch in dict.fromkeys((*PREFILL_BATCHES, *self._batches)):
            logits = torch.zeros(batch, self._config.speech_vocab)
            self._top.record(logits, torch.zeros(batch, dtype=torch.bool))

    def run_step(self, ids: Tensor, lengths: Tensor, rows: Tensor, *, capacity: int) -> tuple[Tensor]:
        # The first rows are read where they lie.
        past = self._memory[:, : len(ids), :, :capacity]
        return (self._logits(self._hidden(ids, lengths, rows, past)[:, 0]),)

    def run_prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor, last: Tensor, *, capacity: int) -> tuple[Tensor]:
        past = self._memory[:, :, :, :capacity].index_select(1, rows)
        hidden = self._hidden(ids, lengths, rows, past)
        return (self._logits(hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]),)

    def run_top(self, logits: Tensor, suppress_end: Tensor) -> tuple[Tensor]:
        """The likeliest ids and their probabilities, float64 [B, 2 * k], from logits [B, V]; see `Scores.top`."""
        ids = torch.arange(logits.shape[1], device=logits.device)
        forbidden = suppress_end[:, None] & (ids >= self._config.end)
        allowed = (logits + 0.0).masked_fill(forbidden, float("-inf"))  # a zero has no sign from here on
        # Integers in the order of the logits, and of equal ones the lower id first: topk leaves the order of ties open.
        bits = allowed.view(torch.int32)
        ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
        found = (ordered * 2**32 - ids).topk(min(self._config.top_k, logits.shape[1]), dim=-1).indices
        probabilities = allowed.double().softmax(-1).gather(1, found)
        return (torch.cat([found.double(), probabilities], dim=1),)

    def _hidden(self, ids: Tensor, lengths: Tensor, rows: Tensor, past: Tensor) -> Tensor:
        """Hidden states [B, T, H] of ids [B, T] behind `lengths` positions; their keys and values go to `rows`."""
        past_k, past_v = past.chunk(2)
        hidden, new_k, new_v = self._module.hidden(
            F.embedding(ids, self._embeddings), lengths, list(past_k), list(past_v)
        )
        places = lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
        new = torch.stack([*new_k, *new_v])  # [2 * layers, B, heads, T, D]
        self._memory[:, rows[:, None], :, places] = new.permute(1, 3, 0, 2, 4)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._module.llm_decoder(hidden.float())
        return logits


class TorchScores:
    """`cosyserve.llm.decoder.Scores` on the device: only what is asked for crosses to the host.

    Args:
        logits: float32 [rows, V].
        count: of these rows the first ones belong to sequences.
        run_top: see `TorchDecoder.run_top`.
    """

    def __init__(self, logits: Tensor, count: int, run_top: CudaGraphs) -> None:
        self._logits = logits
        self._count = count
        self._run_top = run_top

    def top(self, k: int, suppress_end: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.float64]]:
        """See `Scores.top`; `k` is that of the model."""
        rows = np.zeros(len(self._logits), np.bool_)
        rows[: self._count] = suppress_end
        (found,) = self._run_top(self._logits, torch.from_numpy(rows))
        both = found[: self._count].cpu().numpy()
        ids, probabilities = np.split(both, 2, axis=1)
        return ids[:, :k].astype(np.int64), probabilities[:, :k]

    def row(self, index: int) -> NDArray[np.float32]:
        """See `Scores.row`."""
        logits: NDArray[np.float32] = self._logits[index].cpu().numpy()
        return logits


@fitting()
def load_decoder(weights: Weights, settings: Settings) -> TorchDecoder:
    """The language model with its weights, recorded."""
    config, device, dtype = (
        expect(LlmConfig, weights.config.llm),
        prepare_device(settings, urgent=True),
        DTYPES[settings.llm_precision],
    )
    tables = load_file(weights.file("llm.safetensors"))
    # In the order of `VocabLayout`; CosyVoice3 has no table of its own for special rows.
    merged = torch.cat([tables[name].to(dtype) for name in ("text", "speech", "special") if name in tables]).to(device)
    module = load_module(lambda: SpeechLM(config), weights, "llm", device)
    graphs = settings.records_graphs
    decoder = TorchDecoder(module, merged, config, settings.llm_slots, dtype, device, graphs=graphs)
    decoder.record()
    return decoder


def _capacity(positions: int) -> int:
    if positions > CAPACITIES[-1]:
        raise InvalidInput("text", f"with its prompt exceeds {CAPACITIES[-1]} positions")
    return bucket(CAPACITIES, positions)


def _tensors(*arrays: ArrayLike) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(array, np.int64)) for array in arrays]
