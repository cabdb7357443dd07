"""Many concurrent streams: each has the samples that it has alone."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
from live import Live
from numpy.typing import NDArray

from cosyserve_client import AsyncClient, SpeechOptions, SpeechRequest

Pcm = NDArray[np.int16]

TEXTS = (
    "Hi.",
    "Good morning, how are you?",
    "你好，今天天气很好。",
    "One text is longer than another, so that streams join and leave a batch while it runs.",
    "Two sentences. Here is the second.",
    "Numbers like 42 are read out.",
    "Nothing is shared between two voices.",
    "The last of them.",
)


def requests(prompt: SpeechOptions) -> list[SpeechRequest]:
    """One request for each text, in three voices, each with a seed of its own, one without streaming."""
    louder = prompt["prompt_audio"] * np.float32(1.5)
    cross_lingual = SpeechOptions(prompt_audio=louder, prompt_sample_rate=prompt["prompt_sample_rate"])
    voices = (SpeechOptions(), prompt, cross_lingual)
    spoken = [SpeechRequest.of(text, **voices[i % len(voices)]) for i, text in enumerate(TEXTS)]
    return [SpeechRequest.of(request, seed=100 + i, stream=i != 5) for i, request in enumerate(spoken)]


async def test_streams_at_once_equal_the_same_alone(server: Live, prompt: SpeechOptions) -> None:
    wanted = requests(prompt)
    arrivals: list[tuple[int, bool]] = []

    async def speak(client: AsyncClient, index: int) -> Pcm:
        heard = []
        async for chunk in client.stream(wanted[index]):
            arrivals.append((index, chunk.final))
            heard.append(chunk.pcm)
        return np.concatenate(heard)

    async with AsyncClient(server.url, stream_timeout=120) as client:
        alone = [await speak(client, index) for index in range(len(wanted))]
        arrivals.clear()
        together = await asyncio.gather(*(speak(client, index) for index in range(len(wanted))))

    turns = sum(before != after for (before, _), (after, _) in pairwise(arrivals))
    assert turns > len(wanted), "they ran one after another"
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({pcm.tobytes() for pcm in together}) == len(wanted)


async def test_a_short_utterance_overtakes_a_long_one(server: Live) -> None:
    ended: list[str] = []

    async def speak(client: AsyncClient, text: str) -> None:
        await client.synthesize(text, seed=1)
        ended.append(text)

    async with AsyncClient(server.url, stream_timeout=120) as client:
        stream = client.stream(" ".join(TEXTS * 2), seed=1)
        await anext(stream)
        await speak(client, "Hi.")
        rest = [chunk async for chunk in stream]
    assert ended == ["Hi."]
    assert len(rest) > 3


async def test_sixteen_streams_are_all_served(server: Live) -> None:
    async with AsyncClient(server.url, stream_timeout=120) as client:
        speeches = await asyncio.gather(*(client.synthesize("Hi.", seed=index % 2) for index in range(16)))
    even, odd = speeches[0].pcm, speeches[1].pcm
    for index, speech in enumerate(speeches):
        np.testing.assert_array_equal(speech.pcm, odd if index % 2 else even)
