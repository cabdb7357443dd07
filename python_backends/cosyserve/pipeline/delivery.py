"""When the server sends the audio of an utterance, and whether that is in time for its listener."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Delivery:
    """Takes the chunks of one utterance as they are sent. All times are seconds, of one clock.

    `cosyserve_client.bench.playback.Playback` judges what arrives, on the client: sample by sample, without sessions.

    Where text arrives in pieces, a chunk that came after a piece may have waited for it, and one that waited for its
    text is not late. So of sessions only those chunks are judged whose text was there when the one before was sent:
    what is counted is never the writer's doing, and some of what is ours is left out.

    Attributes:
        began: when there was something to speak.
        first_audio: from then to the first audio; None before.
        seconds: audio so far.
        chunks: so far.
        underruns: chunks that came after all the audio before had been played, which makes a pause.
        gap: between the last two chunks; None before, or when the last may have waited for text.
    """

    began: float
    first_audio: float | None = None
    seconds: float = 0.0
    chunks: int = 0
    underruns: int = 0
    gap: float | None = None
    _sent: float = 0.0
    _lasts: float = 0.0  # until then there is something to play

    def chunk_sent(self, seconds: float, now: float, *, written: float | None = None) -> bool:
        """Count a chunk of so much audio, sent now.

        Args:
            written: when the last piece of text came; None if all was there from the beginning.

        Returns:
            Whether it is an underrun.
        """
        waited = written is not None and written > self._sent
        self.gap = None if waited or not self.chunks else now - self._sent
        late = self.gap is not None and now > self._lasts
        if self.first_audio is None:
            self.first_audio = now - self.began
        self.seconds += seconds
        self.chunks += 1
        self.underruns += late
        self._sent = now
        self._lasts = max(self._lasts, now) + seconds
        return late

    @property
    def real_time_factor(self) -> float | None:
        """Seconds until the last audio, for each second of audio; None without audio."""
        return (self._sent - self.began) / self.seconds if self.seconds else None
