"""Every mode of every version, with and without streaming, on the real server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from live import Live

from cosyserve_client import Client, InvalidArgument, SpeechOptions, SpeechRequest

RATES = {1: 22_050, 2: 24_000, 3: 24_000}
SERVERS = {1: "server1", 2: "server", 3: "server3"}
MODES = ("sft", "zero_shot", "cross_lingual", "instruct", "vc")
TEXT = "Hello there."


@pytest.fixture(scope="module", params=list(RATES), ids=lambda number: f"version {number}")
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def speaker(version: int, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of the server with weights of that version."""
    live: Live = request.getfixturevalue(SERVERS[version])
    with Client(live.url, stream_timeout=120) as client:
        yield client
    live.wait_idle()


@pytest.fixture(scope="module")
def cells(prompt: SpeechOptions) -> dict[str, SpeechRequest]:
    """A request for each mode; the others use a registered voice."""
    audio, rate = prompt["prompt_audio"], prompt["prompt_sample_rate"]
    bare: SpeechOptions = {"prompt_audio": audio, "prompt_sample_rate": rate}
    return {
        "sft": SpeechRequest(text=TEXT),
        "zero_shot": SpeechRequest.of(TEXT, **prompt),
        "cross_lingual": SpeechRequest.of(TEXT, **bare),
        "instruct": SpeechRequest(text=TEXT, instruct="Speak slowly."),
        "vc": SpeechRequest(source_audio=audio[: 2 * rate], source_sample_rate=rate, **bare),
    }


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "full"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_speaks(speaker: Client, version: int, cells: dict[str, SpeechRequest], mode: str, stream: bool) -> None:
    request = SpeechRequest.of(cells[mode], mode=mode, seed=5, stream=stream)
    chunks = list(speaker.stream(request))
    heard = np.concatenate([chunk.pcm for chunk in chunks])
    assert {chunk.sample_rate for chunk in chunks} == {RATES[version]}
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].sample_offset == len(heard) > RATES[version] / 10
    assert np.abs(heard.astype(np.int32)).max() > 100
    np.testing.assert_array_equal(speaker.synthesize(request).pcm, heard)
    if mode == "vc":
        assert abs(len(heard) / RATES[version] - 2) < 0.05


def test_modes_differ(speaker: Client, cells: dict[str, SpeechRequest]) -> None:
    heard = {speaker.synthesize(SpeechRequest.of(cells[mode], mode=mode, seed=5)).pcm.tobytes() for mode in MODES}
    assert len(heard) == len(MODES)


@pytest.mark.parametrize(
    ("mode", "field"),
    [
        ("sft", "prompt_audio"),  # needs a registered voice
        ("zero_shot", "prompt_text"),  # needs a transcript
        ("instruct", "instruct"),  # needs an instruction
        ("vc", "source_audio"),  # needs a source
    ],
)
def test_an_input_that_a_mode_refuses_is_named(
    speaker: Client, cells: dict[str, SpeechRequest], mode: str, field: str
) -> None:
    with pytest.raises(InvalidArgument, match=rf" {field}: "):
        speaker.synthesize(SpeechRequest.of(cells["cross_lingual"], mode=mode))
