"""Triton's own faults with malformed requests, on a separate server, and their consequences."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from grpc_corpus import HI, RATE, tensor
from judging import ANSWERED_SECONDS
from raw import Input, message, send, words

from cosyserve.errors import ServeError
from cosyserve.serve import Server, free_port, watch


def test_a_shape_beyond_64_bits_is_refused_or_ends_the_server(demo_weights: Path, tmp_path: Path) -> None:
    """The size of 2^62 floats is 0 in 64 bits, as that of no bytes.

    Where Triton does not refuse that, numpy does in the model's process, which ends, and the launcher ends the server.
    """
    server = Server(demo_weights, grpc_port=free_port(), metrics_port=free_port(), log=tmp_path / "triton.log")
    url = f"127.0.0.1:{server.grpc_port}"
    endless = Input("prompt_audio", "FP32", (2**62,), b"")
    fatal = message("voices", words("action", "list"), tensor("prompt_sample_rate", "INT32", [RATE]), endless)

    with server.running() as process, ThreadPoolExecutor(1) as pool:
        assert send(url, message("tts", HI), seconds=ANSWERED_SECONDS).code == "OK"
        watching = pool.submit(watch, process, server.processes)
        told = send(url, fatal, seconds=ANSWERED_SECONDS)
        assert told.code != "OK"
        if "prompt_audio" in told.message:  # refused by name: the server lives and works
            assert send(url, message("tts", HI), seconds=ANSWERED_SECONDS).code == "OK"
            process.kill()
        ended = watching.exception(timeout=ANSWERED_SECONDS)
        assert isinstance(ended, ServeError)
        assert "prompt_audio" in told.message or "a model process of tritonserver ended" in str(ended)
