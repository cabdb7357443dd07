"""Registered voices on the real server: registration, use, deletion; voices never mix or leave their folder."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from live import Live
from numpy.typing import NDArray
from raw import IN_BODY, Input, call, numbers, words

from cosyserve.voices import VoiceStore
from cosyserve_client import (
    AlreadyExists,
    AsyncClient,
    Client,
    InvalidArgument,
    NotFound,
    SpeechOptions,
    SpeechRequest,
)

TEXT = "Nothing is shared between two voices."
RATE = 16_000
TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"


def pitched(prompt: SpeechOptions, factor: float) -> NDArray[np.float32]:
    """The prompt, spoken by someone else."""
    samples = prompt["prompt_audio"]
    return np.interp(np.arange(0, len(samples) - 1, factor), np.arange(len(samples)), samples).astype(np.float32)


def test_from_registration_to_deletion(server: Live, client: Client, prompt: SpeechOptions) -> None:
    audio, rate, transcript = prompt["prompt_audio"], prompt["prompt_sample_rate"], prompt["prompt_text"].strip()
    inline = client.synthesize(SpeechRequest.of(TEXT, **prompt), seed=5).pcm
    before = {voice.name for voice in client.list_voices()}
    added = client.add_voice("Anna 中文", audio, rate, prompt_text=transcript, consent="signed, file 12")
    try:
        assert {voice.name for voice in client.list_voices()} - before == {"Anna 中文"}
        assert client.show_voice("Anna 中文") == added
        assert (added.prompt_text, added.consent) == (transcript, "signed, file 12")
        assert 0 < added.prompt_seconds <= len(audio) / rate
        assert added.created.endswith("+00:00")
        # The frontend, another process, speaks with it at once, just as with its prompt; and so does any other store.
        np.testing.assert_array_equal(client.synthesize(TEXT, voice="Anna 中文", seed=5).pcm, inline)
        assert VoiceStore(server.weights / "voices").get("Anna 中文").digest == added.digest
        with pytest.raises(AlreadyExists):
            client.add_voice("Anna 中文", audio, rate)
        replaced = client.add_voice("Anna 中文", pitched(prompt, 1.2), rate, prompt_text=transcript, replace=True)
        assert replaced.digest != added.digest
        other = client.synthesize(TEXT, voice="Anna 中文", seed=5).pcm
        assert not np.array_equal(other, inline)
        # Running streams go on after the voice is deleted.
        with client.stream(TEXT, voice="Anna 中文", seed=5) as stream:
            first = next(stream)
            assert client.remove_voice("Anna 中文") == replaced
            rest = [chunk.pcm for chunk in stream]
        np.testing.assert_array_equal(np.concatenate([first.pcm, *rest]), other)
    finally:
        (server.weights / "voices" / "Anna 中文.safetensors").unlink(missing_ok=True)
    for gone in (client.show_voice, client.remove_voice):
        with pytest.raises(NotFound, match="NOT_FOUND no voice named") as missing:
            gone("Anna 中文")
        assert missing.value.reason == "voice"
    with pytest.raises(NotFound) as missing:
        client.synthesize(TEXT, voice="Anna 中文")
    assert missing.value.reason == "voice"


def test_without_a_transcript_a_voice_speaks_as_its_audio_does(client: Client, prompt: SpeechOptions) -> None:
    voice = SpeechOptions(prompt_audio=prompt["prompt_audio"], prompt_sample_rate=prompt["prompt_sample_rate"])
    client.add_voice("mute", voice["prompt_audio"], voice["prompt_sample_rate"])
    try:
        registered = client.synthesize("Hi.", voice="mute", seed=5).pcm
    finally:
        client.remove_voice("mute")
    np.testing.assert_array_equal(registered, client.synthesize(SpeechRequest.of("Hi.", **voice), seed=5).pcm)


async def test_voices_with_one_transcript_never_mix(server: Live, prompt: SpeechOptions) -> None:
    names = ["tenant one", "tenant two"]
    async with AsyncClient(server.url, stream_timeout=120) as client:
        for name, factor in zip(names, (0.9, 1.2), strict=True):
            audio = pitched(prompt, factor)
            await client.add_voice(name, audio, RATE, prompt_text=prompt["prompt_text"])
        try:

            async def speak(index: int) -> NDArray[np.int16]:
                # Even ones by a registered voice, every fourth by the same prompt sent along.
                voice = SpeechOptions(voice=names[index % 2])
                if index % 4 == 3:
                    audio = pitched(prompt, 1.2)
                    voice = SpeechOptions(
                        prompt_audio=audio, prompt_sample_rate=RATE, prompt_text=prompt["prompt_text"]
                    )
                return (await client.synthesize(SpeechRequest.of(TEXT, **voice), seed=7)).pcm

            alone = [await speak(index) for index in range(2)]
            together = await asyncio.gather(*(speak(index) for index in range(16)))
        finally:
            for name in names:
                await client.remove_voice(name)
    assert not np.array_equal(*alone)
    for index, pcm in enumerate(together):
        np.testing.assert_array_equal(pcm, alone[index % 2])


def action(name: str) -> Input:
    return words("action", name)


TONE = 0.3 * np.sin(np.arange(2 * RATE) / 20)
PROMPT = (numbers("prompt_audio", "FP32", TONE), numbers("prompt_sample_rate", "INT32", [RATE]))
ANNA = words("voice", "anna")

WRONG = {
    "no action": ("action", ()),
    "unknown action": ("action", (action("rename"), ANNA)),
    "nameless": ("voice", (action("describe"),)),
    "no audio": ("prompt_audio", (action("register"), ANNA)),
    "no rate": ("prompt_sample_rate", (action("register"), ANNA, PROMPT[0])),
    "short audio": ("prompt_audio", (action("register"), ANNA, numbers("prompt_audio", "FP32", TONE[:99]), PROMPT[1])),
    "long audio": (
        "prompt_audio",
        (action("register"), ANNA, numbers("prompt_audio", "FP32", np.tile(TONE, 16)), PROMPT[1]),
    ),
    "empty transcript": ("prompt_text", (action("register"), ANNA, *PROMPT, words("prompt_text", " "))),
    "long transcript": ("prompt_text", (action("register"), ANNA, *PROMPT, words("prompt_text", "word " * 500))),
    "long note": ("consent", (action("register"), ANNA, *PROMPT, words("consent", "yes " * 500))),
    "note not UTF-8": ("consent", (action("register"), ANNA, *PROMPT, words("consent", b"\xff"))),
    "name not UTF-8": ("voice", (action("register"), words("voice", b"\xff"), *PROMPT)),
}


@pytest.mark.parametrize(("field", "inputs"), WRONG.values(), ids=WRONG.keys())
def test_wrong_requests_name_their_field(server: Live, field: str, inputs: tuple[Input, ...]) -> None:
    before = sorted((server.weights / "voices").iterdir())
    answer = call(server.url, *inputs, model="voices")
    assert answer.code == IN_BODY
    # Triton itself names a missing required input, in its own words.
    assert answer.message.startswith(f"{field}: ") or (not inputs and field in answer.message)
    assert sorted((server.weights / "voices").iterdir()) == before


@pytest.mark.parametrize("name", ["../anna", "/tmp/anna", "a/../../b", "..", ".anna", "anna\0", "", "x" * 65])
def test_a_name_never_leads_out_of_the_folder(server: Live, client: Client, name: str) -> None:
    around = sorted(server.weights.iterdir())
    with pytest.raises(InvalidArgument, match="voice: "):
        client.add_voice(name, TONE.astype(np.float32), RATE)
    for reach in (client.show_voice, client.remove_voice):
        with pytest.raises(NotFound):
            reach(name)
    assert sorted(server.weights.iterdir()) == around


def cosyserve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("cosyserve")), "voice", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_commands(server: Live, client: Client) -> None:
    url = ("--url", server.url)
    wav = ("--prompt-wav", str(TINY / "prompt.wav"))
    added = cosyserve("add", "carla", *wav, "--prompt-text", "你好", "--consent", "by mail", *url)
    try:
        assert added.returncode == 0, added.stderr
        assert added.stdout.startswith("carla: registered, ")
        assert [line.split("\t")[0] for line in cosyserve("list", *url).stdout.splitlines()] == sorted(
            voice.name for voice in client.list_voices()
        )
        shown = dict(line.split(": ", 1) for line in cosyserve("show", "carla", *url).stdout.splitlines())
        assert (shown["prompt_text"], shown["consent"]) == ("你好", "by mail")
        again = cosyserve("add", "carla", *wav, *url)
        assert (again.returncode, again.stderr.count("\n")) == (1, 1)
        assert again.stderr.startswith("error: ALREADY_EXISTS")
    finally:
        removed = cosyserve("rm", "carla", *url)
    assert removed.stdout == "carla: removed\n"
