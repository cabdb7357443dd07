"""Tensors pass between Triton and numpy as they are, whichever numpy is installed: an echo on the real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from live import bare_triton
from numpy.typing import NDArray

TYPES = {"BYTES": "STRING", "FP32": "FP32", "INT16": "INT16", "INT32": "INT32", "INT64": "INT64", "BOOL": "BOOL"}

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 0
input {{ name: "given" data_type: TYPE_{type} dims: [ -1, -1 ] }}
output {{ name: "told" data_type: TYPE_{type} dims: [ -1, -1 ] }}
instance_group {{ kind: KIND_CPU }}
"""

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils
from cosyserve.triton.tensors import make_tensor, read_tensor


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            array = read_tensor(pb_utils.get_input_tensor_by_name(request, "given"))
            array = np.ascontiguousarray(array)
            if array.dtype != np.object_:
                array.flags.writeable = False
            answers.append(pb_utils.InferenceResponse([make_tensor("told", array)]))
        return answers
"""

WORDS = np.array([[b"", b"caf\xc3\xa9", "好".encode(), b"x" * 300]], np.object_)
NUMBERS = np.arange(-6, 6)


def cases() -> Iterator[tuple[str, NDArray[Any]]]:
    for kind in ("FP32", "INT16", "INT32", "INT64", "BOOL"):
        numpy = {"FP32": np.float32, "BOOL": np.bool_}.get(kind) or np.dtype(kind.lower())
        for shape in ((1, 12), (3, 4), (12, 1), (1, 1), (1, 0), (0, 4)):
            yield kind, np.resize(NUMBERS, shape).astype(numpy) if 0 not in shape else np.zeros(shape, numpy)
    for shape in ((1, 4), (2, 2), (4, 1), (1, 1), (1, 0)):
        yield "BYTES", np.resize(WORDS, shape) if 0 not in shape else np.zeros(shape, np.object_)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server that has one model for each type."""
    folder = tmp_path_factory.mktemp("echo")
    for kind, spelled in TYPES.items():
        version = folder / "models" / kind / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL)
        (version.parent / "config.pbtxt").write_text(CONFIG.format(name=kind, type=spelled))
    with (
        bare_triton(folder, "--model-load-thread-count=1") as url,
        grpc_client.InferenceServerClient(url) as client,
    ):
        yield client


@pytest.mark.parametrize(("kind", "array"), list(cases()), ids=lambda case: str(getattr(case, "shape", case)))
def test_tensors_of_every_type_and_shape_arrive_as_they_were_sent(echo: Any, kind: str, array: NDArray[Any]) -> None:
    given = grpc_client.InferInput("given", array.shape, kind)
    given.set_data_from_numpy(array)
    told = echo.infer(kind, [given]).as_numpy("told")
    assert told.dtype == array.dtype
    np.testing.assert_array_equal(told, array)
