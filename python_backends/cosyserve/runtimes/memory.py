"""How the memory of a device is shared out: what the language model, the vocoder and the flow take, and what is left
for the flow's KV cache. Arithmetic only; `cosyserve doctor`, the docs and the tests of the deployments read it too."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cosyserve.config import FlowConfig, LlmConfig, ModelConfig, expect
from cosyserve.errors import WeightsError
from cosyserve.limits import RESERVED_FRAMES
from cosyserve.runtimes.buckets import BATCH, BLOCKS, bucket
from cosyserve.settings import Settings
from cosyserve.weights import Weights

GIB = 2**30

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

LLM_POSITIONS = 4096
"""Positions of a sequence in the torch runtime: 30 s of prompt with its transcript, the text of a segment, and 100 s of
speech."""

CONTEXT_BYTES = 4 * 2 * GIB
"""Of four processes: the CUDA context, workspaces of cuBLAS and cuDNN, what the driver keeps of recorded calls, and the
frontend's networks. An estimate: nothing of it has been measured."""

LLM_CALL_BYTES = 2 * GIB
"""Of the language model's largest prefill."""

HIFT_STREAM_BYTES = 2 * 96 * 2**20
"""Of the vocoder's largest call, for each stream in it: 320 frames, as counted on the device ``meta``. Twice, because a
call runs once outside the memory of recorded calls before it is recorded."""

USABLE = 0.95
"""Of a GPU's memory that is planned with: drivers keep some, and cards have less than their name says."""

HOST_SHARE = 0.5
"""Of a machine's memory that the flow's KV cache may take on CPUs when no size is set."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on a GPU with the runtime torch.

    Attributes:
        contexts: see `CONTEXT_BYTES`.
        llm: weights, embedding tables, KV cache and the largest call.
        hift: weights and the largest call.
        flow: weights.
        flow_calls: what the largest call of the flow reads of the cache at once.
        flow_cache: KV cache of streams and voices.
        page: one page of it, 1 s of audio.
    """

    contexts: int
    llm: int
    hift: int
    flow: int
    flow_calls: int
    flow_cache: int
    page: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.contexts + self.llm + self.hift + self.flow + self.flow_calls + self.flow_cache

    def streams(self, prompt_frames: int = 250) -> int:
        """Streams with 10 s reserved for each, where each brings a prompt of its own of so many mel frames."""
        frames = 50 * self.flow_cache // self.page
        return frames // (RESERVED_FRAMES + prompt_frames)


def estimator_page_bytes(config: FlowConfig, item: int) -> int:
    """Bytes of what one chunk leaves in the estimator, all Euler steps and both rows of guidance.

    Args:
        item: bytes of a number.
    """
    attention = 2 * config.frame_chunk * math.prod(config.attention)
    return config.steps * 2 * item * (attention + sum(map(math.prod, config.tails)))


def kv_bytes(config: LlmConfig, rows: int, item: int) -> int:
    """Bytes of the language model's KV cache in fixed rows, of which it has two to spare."""
    return (rows + 2) * LLM_POSITIONS * config.layers * 2 * config.kv_heads * config.head_dim * item


def most_pages(pages: int) -> int:
    """Pages that one call of the flow reads at most; streams of one voice read its pages too, each for itself."""
    return max(2 * pages, BLOCKS[-1])


def device_memory(config: ModelConfig, parameters: Mapping[str, int], total: int, settings: Settings) -> DeviceMemory:
    """How the memory of one GPU is shared out.

    Args:
        parameters: float32 bytes of the weights of ``llm`` (embedding tables included), ``flow`` and ``hift``.
        total: bytes of the GPU.
        settings: their `precision`, `llm_precision`, `llm_slots`, `max_streams` and `flow_cache_mib`; a cache of 0 MiB
            is as large as the others leave room for.
    """
    flow, llm = expect(FlowConfig, config.flow), expect(LlmConfig, config.llm)
    item, llm_item = ITEM_BYTES[settings.precision], ITEM_BYTES[settings.llm_precision]
    batch = bucket(BATCH, min(settings.max_streams, BATCH[-1]))
    page = estimator_page_bytes(flow, item)
    used = DeviceMemory(
        contexts=CONTEXT_BYTES,
        llm=parameters["llm"] * llm_item // 4 + kv_bytes(llm, settings.llm_slots, llm_item) + LLM_CALL_BYTES,
        hift=parameters["hift"] + batch * HIFT_STREAM_BYTES,
        flow=parameters["flow"] * item // 4,
        flow_calls=0,
        flow_cache=0,
        page=page,
    )
    # One Euler step's part of the pages that a call reads lies in a second place, and in a third while it is recorded.
    calls = 2 * most_pages(1) * page // flow.steps
    if settings.flow_cache_mib:
        cache = settings.flow_cache_mib * 2**20
    else:
        cache = max(0, int((USABLE * total - used.total) / (1 + 4 / flow.steps)) - calls)
    calls = max(calls, 4 * cache // flow.steps)
    return replace(used, flow_calls=calls, flow_cache=cache)


def flow_cache_bytes(weights: Weights, settings: Settings) -> int:
    """Bytes of the flow's KV cache: as set, or what its device can spare.

    Raises:
        WeightsError: the GPU is too small for these settings.
    """
    if settings.flow_cache_mib:
        return settings.flow_cache_mib * 2**20
    if settings.device != "cuda":
        return int(HOST_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    import torch  # a CPU serves without it

    _, total = torch.cuda.mem_get_info()
    memory = device_memory(weights.config, parameter_bytes(weights), total, settings)
    if memory.flow_cache < memory.page:
        gibibytes = (total / GIB, memory.total / GIB)
        problem = "GPU memory: {:.0f} GiB, and {:.0f} are needed besides the flow's cache".format(*gibibytes)
        raise WeightsError(f"{problem}; lower llm_slots or max_streams")
    return memory.flow_cache


def parameter_bytes(weights: Weights) -> dict[str, int]:
    """Float32 bytes of each network in the weights folder."""
    from cosyserve.runtimes.torch.modules import weights_file  # imports torch

    files = weights.manifest["files"]
    sizes = {stage: int(files[weights_file(stage)]["bytes"]) for stage in ("llm", "flow", "hift")}
    return sizes | {"llm": sizes["llm"] + int(files["llm.safetensors"]["bytes"])}
