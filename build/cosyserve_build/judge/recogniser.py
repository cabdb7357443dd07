"""Recognise speech with pocketsphinx, within the demo vocabulary."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pocketsphinx
from numpy.typing import NDArray

from cosyserve.audio.features import resample
from cosyserve_build.judge.language import bigrams
from cosyserve_build.judge.sentences import VOCABULARY, sentences, words

RATE = 16_000  # Hz, of the acoustic model
_TAUGHT = 30_000  # sentences in which bigrams are counted
_SEED = 77


class Recogniser:
    """Decoder with a bigram model of sentences like those of the voice's training."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            model, lexicon = Path(scratch, "bigrams.arpa"), Path(scratch, "words.dict")
            taught = (words(text) for text in itertools.islice(sentences(_SEED), _TAUGHT))
            model.write_text(bigrams(itertools.chain(taught, ([word] for word in sorted(VOCABULARY)))))
            lexicon.write_text(_lexicon())
            self._decoder = pocketsphinx.Decoder(
                hmm=pocketsphinx.get_model_path("en-us/en-us"), lm=str(model), dict=str(lexicon), loglevel="FATAL"
            )

    def hear(self, audio: NDArray[np.float32], rate: int) -> list[str]:
        """Return the lower-case words of mono audio [n] in -1..1."""
        pcm = (np.clip(resample(audio, rate, RATE), -1, 1) * 32767).astype(np.int16)
        if not len(pcm):  # the decoder fails on empty audio
            return []
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr.split() if hypothesis else []


def _lexicon() -> str:
    """Return the pronunciations of the vocabulary from pocketsphinx's dictionary.

    Raises:
        KeyError: words have no pronunciation; the message names them.
    """
    known = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")).read_text("utf-8").splitlines()
    wanted = {word for text in VOCABULARY for word in words(text)}
    lines = [line for line in known if line.split(maxsplit=1)[0].split("(")[0] in wanted]
    missing = wanted - {line.split(maxsplit=1)[0].split("(")[0] for line in lines}
    if missing:
        raise KeyError(f"words without pronunciation: {', '.join(sorted(missing))}")
    return "\n".join([*lines, ""])


def word_errors(said: list[str], heard: list[str]) -> int:
    """Count substitutions, insertions and deletions between two texts (Levenshtein distance)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]
