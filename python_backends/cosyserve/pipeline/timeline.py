"""Where the audio of an utterance stands, in samples and in the speech tokens of its segments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One response to the client (contract `TTS`)."""

    audio: Pcm
    sample_offset: int
    token_offset: int
    token_count: int
    segment: int
    final: bool


class Timeline:
    """Turns the audio of an utterance into chunks that say where they lie.

    The token ranges of a segment's chunks join without gap and end with its last token. Inside they are counted by the
    samples, so they say what is heard in a chunk and not what was computed for it.

    Args:
        samples_per_token: of the audio as it is sent, at its speed and rate; an average where tokens vary.
    """

    def __init__(self, samples_per_token: float) -> None:
        self._samples_per_token = samples_per_token
        self._sent = 0  # samples
        self._segment = 0
        self._samples = 0  # of the segment
        self._tokens = 0  # of the segment

    def chunk(self, audio: Pcm, segment: int, tokens: int, last: bool) -> Chunk:
        """The next chunk.

        Args:
            audio: of this segment.
            segment: its index, not below the one before.
            tokens: of the segment that are known.
            last: no audio of the segment follows; then `tokens` is all of them.
        """
        if segment != self._segment:
            self._segment, self._samples, self._tokens = segment, 0, 0
        offset, start = self._sent, self._tokens
        self._sent += len(audio)
        self._samples += len(audio)
        self._tokens = tokens if last else min(int(self._samples / self._samples_per_token), tokens)
        return Chunk(audio, offset, start, self._tokens - start, segment, final=False)

    def end(self) -> Chunk:
        """The final chunk, without audio."""
        return Chunk(np.zeros(0, np.int16), self._sent, self._tokens, 0, self._segment, final=True)
