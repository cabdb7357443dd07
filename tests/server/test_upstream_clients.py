"""Unmodified clients of upstream's server: NVIDIA's client, a batch dimension, padded references."""

from __future__ import annotations

import queue
from functools import partial
from typing import Any

import numpy as np
import pytest
from live import Live
from numpy.typing import NDArray
from raw import IN_BODY, call, words
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from cosyserve.compat import SEED
from cosyserve.metrics import AUDIO_SAMPLES
from cosyserve_client import Client, SpeechOptions, SpeechRequest

TEXT = "Streamed to a client that was written for another server."


def inputs(text: str, reference: NDArray[np.float32] | None = None, transcript: str = "", pad: int = 0) -> list[Any]:
    arrays: dict[str, Any] = {}
    if reference is not None:
        arrays["reference_wav"] = np.pad(reference, (0, pad))[None]
        arrays["reference_wav_len"] = np.array([[len(reference)]], np.int32)
        arrays["reference_text"] = np.array([[transcript]], dtype=object)
    arrays["target_text"] = np.array([[text]], dtype=object)
    made = []
    for name, array in arrays.items():
        made.append(triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def heard(server: Live, model: str, *given: list[Any]) -> list[list[NDArray[np.float32]]]:
    """The chunks of each request, one after another on one stream."""
    results: queue.Queue[Any] = queue.Queue()

    def arrived(answers: queue.Queue[Any], result: Any, error: InferenceServerException | None) -> None:
        answers.put(error or result)

    answers = []
    with triton.InferenceServerClient(server.url) as client:
        client.start_stream(callback=partial(arrived, results))
        for index, request in enumerate(given):
            client.async_stream_infer(
                model_name=model,
                inputs=request,
                request_id=str(index),
                outputs=[triton.InferRequestedOutput("waveform")],
                enable_empty_final_response=True,
            )
            chunks: list[NDArray[np.float32]] = []
            while True:
                result = results.get(timeout=60)
                if isinstance(result, InferenceServerException):
                    raise result
                response = result.get_response()
                assert response.id == str(index)
                if response.parameters["triton_final_response"].bool_param:
                    assert result.as_numpy("waveform") is None, "the final response has flags only"
                    break
                waveform = result.as_numpy("waveform")
                assert waveform.dtype == np.float32
                assert waveform.shape[0] == 1
                chunks.append(waveform.reshape(-1))
            answers.append(chunks)
        client.stop_stream()
    return answers


def test_with_and_without_a_reference(server: Live, client: Client, prompt: SpeechOptions) -> None:
    audio, transcript = prompt["prompt_audio"], prompt["prompt_text"]
    samples = server.metric(AUDIO_SAMPLES)
    plain, cloned, mute = heard(
        server,
        "cosyvoice2",
        inputs(TEXT),
        inputs(TEXT, audio, transcript, pad=16_000),
        inputs(TEXT, audio),
    )
    counted = server.metric(AUDIO_SAMPLES) - samples
    assert counted == sum(len(chunk) for chunks in (plain, cloned, mute) for chunk in chunks)
    bare: SpeechOptions = {"prompt_audio": audio, "prompt_sample_rate": prompt["prompt_sample_rate"]}
    for chunks, voice in ((plain, SpeechOptions()), (cloned, prompt), (mute, bare)):
        assert len(chunks) > 1
        wanted = client.synthesize(SpeechRequest.of(TEXT, **voice), seed=SEED).pcm
        np.testing.assert_array_equal(np.concatenate(chunks) * 32768, wanted)
    server.wait_idle()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (inputs(""), "target_text: "),
        (inputs(TEXT, np.zeros(16_000, np.float32)), "reference_wav: is silent"),
        (inputs(TEXT, np.zeros(40 * 16_000, np.float32)), "reference_wav: must last"),
        (inputs(TEXT, np.zeros(0, np.float32)), "reference_wav: must last"),
    ],
)
def test_errors_name_upstream_s_fields(server: Live, given: list[Any], message: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        heard(server, "cosyvoice2", given)
    assert caught.value.message().startswith(message)


def test_the_model_of_another_version_is_not_there(server: Live) -> None:
    with pytest.raises(InferenceServerException, match="unknown model: 'cosyvoice3'"):
        heard(server, "cosyvoice3", inputs(TEXT))
    with triton.InferenceServerClient(server.url) as client:
        assert client.is_model_ready("cosyvoice2")
        assert not client.is_model_ready("cosyvoice3")


def test_a_batch_dimension_is_needed(server: Live) -> None:
    answer = call(server.url, words("target_text", "Hi."), model="cosyvoice2")
    assert answer.code == IN_BODY
    assert "target_text" in answer.message


def test_version_3_has_the_same_contract(server3: Live, prompt: SpeechOptions) -> None:
    audio, transcript = prompt["prompt_audio"], prompt["prompt_text"]
    written = f"You are a helpful assistant.<|endofprompt|>{transcript}"
    chunks, prefixed = heard(server3, "cosyvoice3", inputs(TEXT, audio, transcript), inputs(TEXT, audio, written))
    with Client(server3.url, stream_timeout=120) as client:
        wanted = client.synthesize(SpeechRequest.of(TEXT, **prompt), seed=SEED).pcm
    np.testing.assert_array_equal(np.concatenate(chunks) * 32768, wanted)
    np.testing.assert_array_equal(np.concatenate(prefixed), np.concatenate(chunks))
    with pytest.raises(InferenceServerException, match="unknown model: 'cosyvoice2'"):
        heard(server3, "cosyvoice2", inputs(TEXT))
