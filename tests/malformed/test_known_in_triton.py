"""What Triton 2.51 does wrong with malformed requests, on a server of its own, and what becomes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grpc_corpus import HI, RATE, tensor
from judging import ANSWERED_SECONDS
from raw import Input, message, send, words

from cosyserve.errors import ServeError
from cosyserve.serve import Server, free_port, watch


def test_a_shape_beyond_64_bits_ends_a_model_process_and_the_launcher_ends_the_server(
    demo_weights: Path, tmp_path: Path
) -> None:
    """The size of 2^62 floats is 0 in 64 bits, as that of no bytes; numpy refuses it where nobody catches that."""
    server = Server(demo_weights, grpc_port=free_port(), metrics_port=free_port(), log=tmp_path / "triton.log")
    url = f"127.0.0.1:{server.grpc_port}"
    endless = Input("prompt_audio", "FP32", (2**62,), b"")
    fatal = message("voices", words("action", "list"), tensor("prompt_sample_rate", "INT32", [RATE]), endless)

    def end_it() -> str:
        assert send(url, message("tts", HI), seconds=ANSWERED_SECONDS).code == "OK"
        return send(url, fatal, seconds=ANSWERED_SECONDS).code

    with server.running() as process, ThreadPoolExecutor(1) as pool:
        told = pool.submit(end_it)
        with pytest.raises(ServeError, match="a model process of tritonserver ended"):
            watch(process)
        assert told.result() != "OK"
