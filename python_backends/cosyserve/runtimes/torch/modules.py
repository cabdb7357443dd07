"""Network modules with prepared weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import nn

from cosyserve.errors import WeightsError
from cosyserve.settings import Settings
from cosyserve.weights import Weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

M = TypeVar("M", bound=nn.Module)


def prepare_device(settings: Settings, *, urgent: bool = False) -> torch.device:
    """The device that the settings name, with this process set up for it.

    Args:
        urgent: under MPS, kernels of this process go first. The language model's are short, and all others wait for
            its tokens.

    Raises:
        WeightsError: torch does not see the device.
    """
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "0" if urgent else "1")  # read when the context is made
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise WeightsError("device cuda needs a torch that sees a GPU")
    torch.set_num_threads(settings.threads)
    # cuDNN takes TF32 for float32 by default; its rounding would tell chunked from one-shot audio.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Some of cuDNN's algorithms for transposed convolutions add up in any order.
    torch.backends.cudnn.deterministic = True
    return torch.device(settings.device)


@contextmanager
def fitting() -> Iterator[None]:
    """Around whatever takes memory at the start.

    Raises:
        WeightsError: the device has too little; the message names the settings.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise WeightsError("too little GPU memory: lower flow_cache_mib, llm_slots or max_streams") from None


def load_module(make: Callable[[], M], weights: Weights, network: str, device: torch.device) -> M:
    """A module with its weights in float32, for inference.

    Args:
        make: builds the module; it is called without memory for its parameters.
        weights: prepared with ``--runtime torch``.
        network: ``llm``, ``flow`` or ``hift``.
        device: where it will run.

    Raises:
        WeightsError: the weights were not prepared for this runtime, or are damaged.
    """
    name = weights_file(network)
    if name not in weights.manifest["files"]:
        raise WeightsError(
            f"{name} is not in the weights folder: make it with `cosyserve-build prepare BUNDLE OUT --runtime torch`"
        )
    with torch.device("meta"):
        module = make()
    with safe_open(weights.file(name), "pt", device=str(device)) as tensors:
        state = {key: tensors.get_tensor(key) for key in module.state_dict()}
    module.load_state_dict(state, assign=True)
    return module.to(device).eval().requires_grad_(False)


def weights_file(network: str) -> str:
    """Name of a network's weights for this runtime in the weights folder."""
    return f"{network}.torch.safetensors"
