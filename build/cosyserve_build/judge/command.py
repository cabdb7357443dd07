"""Command ``cosyserve-build judge``: synthesise held-out sentences, then recognise and measure them."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import track

from cosyserve_build.judge.recogniser import Recogniser
from cosyserve_build.judge.sentences import held_out
from cosyserve_build.judge.speech import from_flite, from_server
from cosyserve_build.judge.verdict import Finding, Verdict


def judge(
    url: str, voice: str | None, source: str | None, sentences: int, *, stream: bool, seed: int, at_once: int
) -> Verdict:
    """Measure a server, or voice `source` of flite.

    All sentences are synthesised before the first is recognised, so that recognition does not slow the server down.

    Raises:
        CosyServeError: see `from_server` and `from_flite`.
    """
    texts = held_out(sentences)
    if source is None:
        speeches = from_server(url, texts, voice=voice, stream=stream, seed=seed, at_once=at_once)
    else:
        speeches = from_flite(source, texts)
    recogniser, console = Recogniser(), Console(stderr=True)
    hidden = not sys.stderr.isatty()
    said = list(track(speeches, "speaking", len(texts), console=console, disable=hidden))
    heard = track(said, "listening", console=console, disable=hidden)
    return Verdict(Finding.of(speech, recogniser) for speech in heard)
