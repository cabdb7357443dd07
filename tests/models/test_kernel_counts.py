"""How many kernels a GPU launches for each chunk, speech token and vocoder window, counted at full size on ``meta``.

Most of their time is launches. A count that rises is a regression; one that falls is written here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cosyserve import versions
from cosyserve.config import ModelConfig
from cosyserve.lazy import resolve
from cosyserve.runtimes.torch.flow import PAGED_ENCODERS
from cosyserve.runtimes.torch.llm import TorchDecoder
from cosyserve.runtimes.torch.network import Places
from cosyserve.runtimes.torch.solver import PagedSolver
from cosyserve_build.gpu_memory import full_size

META = torch.device("meta")
READS_HOST = {"_local_scalar_dense", "item", "_to_cpu", "nonzero"}


class Kernels(TorchDispatchMode):
    """Counts operators that launch something, and refuses those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in READS_HOST, name
        self.count += not (func.is_view or name.startswith(("empty", "detach", "lift", "_unsafe_view", "sym_")))
        return func(*args, **(kwargs or {}))


def count(function: Any, *arguments: Any, **options: Any) -> int:
    with torch.inference_mode(), Kernels() as kernels:
        function(*arguments, **options)
    return kernels.count


@pytest.fixture(scope="module", params=[2, 3], ids=str)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return full_size(request.param)


def module(name: str, *arguments: Any) -> Any:
    with META:
        made: nn.Module = resolve(name)(*arguments)
    return made.eval().requires_grad_(False)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, device=META, dtype=dtype)


def ids(*shape: int) -> Tensor:
    return floats(*shape, dtype=torch.int64)


PLACES = Places(ids(1, 8), *(ids(1) for _ in Places._fields[1:]))._replace(fresh=ids(1, 1))
KERNELS = {
    2: {"encode": 347, "solve": 10605, "step": 815, "top": 14, "prefill": 817, "move": 1, "decode": 724},
    3: {"encode": 17, "solve": 9286, "step": 815, "top": 14, "prefill": 817, "move": 1, "decode": 806},
}


def test_a_chunk_launches_its_number_of_kernels(config: ModelConfig) -> None:
    flow, network = config.flow, versions.of(config).flow
    encoder = PAGED_ENCODERS[network.name](module(network.modules[0], flow), flow, 10, META)
    solver = PagedSolver(module(network.modules[1], flow), flow, 10, torch.float16, META)
    known = KERNELS[config.version]
    mel = floats(1, flow.mels, flow.frame_chunk)
    tokens = ids(1, flow.chunk), ids(1, flow.lookahead), floats(1, flow.lookahead)
    assert count(encoder, PLACES, *tokens, chunks=1) == known["encode"]
    assert count(solver, PLACES, mel, mel, mel, floats(1, flow.speaker), chunks=1) == known["solve"]


def test_a_speech_token_launches_its_number_of_kernels(config: ModelConfig) -> None:
    llm = config.llm
    table = floats(llm.vocab + llm.speech_vocab + 2, llm.hidden)
    decoder = TorchDecoder(module("cosyserve.networks.qwen2:SpeechLM", llm), table, llm, 2, torch.float32, META)
    known = KERNELS[config.version]
    assert count(decoder.run_step, ids(1, 1), ids(1), ids(1), capacity=512) == known["step"]
    assert count(decoder.run_top, floats(1, llm.speech_vocab), floats(1, dtype=torch.bool)) == known["top"]
    assert count(decoder.run_prefill, ids(1, 64), ids(1), ids(1), ids(1), capacity=512) == known["prefill"]
    assert count(decoder.move, 1, 0, 300) == known["move"]


def test_a_window_launches_its_number_of_kernels(config: ModelConfig) -> None:
    hift, frames = config.hift, 96
    decoder = module("cosyserve.networks.hift:Decoder", hift)
    found = count(decoder, floats(1, hift.mels, frames), floats(1, 1, frames * hift.frame))
    assert found == KERNELS[config.version]["decode"]
