"""Where the audio of an utterance stands: in samples, in the speech tokens of its segments, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosyserve.pipeline.captions import Captions, Word

Pcm = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One response to the client (contract `TTS`)."""

    audio: Pcm
    sample_offset: int
    token_offset: int
    token_count: int
    segment: int
    words: tuple[Word, ...]
    final: bool


class Timeline:
    """Turns the audio of an utterance into chunks that say where they lie.

    The token ranges of a segment's chunks join without gap and end with its last token. Inside they are counted by the
    samples, so they say what is heard in a chunk and not what was computed for it.

    Args:
        samples_per_token: of the audio as it is sent, at its speed and rate; an average where tokens vary.
        captions: for words, if they are wanted.
    """

    def __init__(self, samples_per_token: float, captions: Captions | None = None) -> None:
        self._samples_per_token = samples_per_token
        self._captions = captions
        self._sent = 0  # samples
        self._segment = 0
        self._samples = 0  # of the segment
        self._tokens = 0  # of the segment

    def chunk(self, audio: Pcm, segment: int, text: str, tokens: int, *, ended: bool, last: bool) -> Chunk:
        """The next chunk.

        Args:
            audio: of this segment.
            segment: its index, not below the one before.
            text: of the segment, as far as it is there.
            tokens: of the segment that are generated.
            ended: those are all.
            last: no audio of the segment follows.
        """
        if segment != self._segment:
            self._segment, self._samples, self._tokens = segment, 0, 0
        offset, before, start = self._sent, self._samples, self._tokens
        self._sent += len(audio)
        self._samples += len(audio)
        self._tokens = tokens if last else min(int(self._samples / self._samples_per_token), tokens)
        words: list[Word] = []
        if self._captions:
            made = tokens * self._samples_per_token
            words = self._captions.chunk(segment, text, offset, before, len(audio), made=made, ended=ended, last=last)
        return Chunk(audio, offset, start, self._tokens - start, segment, tuple(words), final=False)

    def end(self) -> Chunk:
        """The final chunk, without audio."""
        return Chunk(np.zeros(0, np.int16), self._sent, self._tokens, 0, self._segment, (), final=True)
