"""Figures of many utterances, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from cosyserve_build.judge.recogniser import Recogniser, word_errors
from cosyserve_build.judge.sentences import words
from cosyserve_build.judge.signals import Signal
from cosyserve_build.judge.speech import Speech

WORST = 5  # sentences in the table
_DRAWS = 2000  # bootstrap samples


@dataclass(frozen=True, eq=False)
class Finding:
    """Figures of one utterance: text, recognised words, and signal."""

    said: list[str]
    heard: list[str]
    seconds: float
    first_audio: float | None
    signal: Signal

    @property
    def errors(self) -> int:
        """Word errors."""
        return word_errors(self.said, self.heard)

    @classmethod
    def of(cls, speech: Speech, recogniser: Recogniser) -> Finding:
        """Recognise and measure one utterance."""
        return cls(
            words(speech.text),
            recogniser.hear(speech.pcm.astype(np.float32) / np.float32(32768), speech.rate),
            len(speech.pcm) / speech.rate,
            speech.first_audio,
            Signal.of(speech.pcm, speech.joins, speech.rate),
        )


class Verdict:
    """Figures of several utterances, at least one."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = list(findings)
        self.errors = np.array([finding.errors for finding in self.findings])
        self.words = np.array([len(finding.said) for finding in self.findings])
        self.signal = Signal.all([finding.signal for finding in self.findings])

    @property
    def wer(self) -> float:
        """Word error rate: word errors divided by words of the text."""
        return float(self.errors.sum() / self.words.sum())

    def interval(self) -> tuple[float, float]:
        """Compute the 95 % bootstrap confidence interval of the word error rate, over sentences."""
        drawn = np.random.default_rng(0).integers(0, len(self.words), (_DRAWS, len(self.words)))
        low, high = np.percentile(self.errors[drawn].sum(axis=1) / self.words[drawn].sum(axis=1), (2.5, 97.5))
        return float(low), float(high)

    def figures(self) -> dict[str, Any]:
        """Return the figures for JSON.

        ``sentences``, ``words``, ``errors`` (substitutions, insertions and deletions), ``wer`` with ``wer_low`` and
        ``wer_high`` (see `interval`); ``seconds`` of audio, ``first_audio_ms`` (median; null without streaming),
        ``clipped`` (share of samples), ``silent`` (share of frames); ``joins``, ``clicks`` (how many of them click),
        ``worst_jolt`` (a join clicks above `signals.CLICK`), ``voiced_joins``, ``join_step`` and ``inner_step``
        (medians, in semitones), ``usual_step`` (semitones) and ``breaks`` (voiced joins with a larger step): see
        `signals.Signal`. Medians and ``worst_jolt`` are null without joins.
        """
        signal, (low, high) = self.signal, self.interval()
        first = [1000 * one.first_audio for one in self.findings if one.first_audio is not None]
        return {
            "sentences": len(self.findings),
            "words": int(self.words.sum()),
            "errors": int(self.errors.sum()),
            "wer": self.wer,
            "wer_low": low,
            "wer_high": high,
            "seconds": sum(finding.seconds for finding in self.findings),
            "first_audio_ms": _median(first),
            "clipped": signal.clipped / max(1, signal.samples),
            "silent": signal.silent / max(1, signal.frames),
            "joins": len(signal.jolts),
            "clicks": signal.clicks,
            "worst_jolt": float(signal.jolts.max()) if len(signal.jolts) else None,
            "voiced_joins": len(signal.steps),
            "join_step": _median(signal.steps),
            "inner_step": _median(signal.inner_steps),
            "usual_step": signal.usual_step,
            "breaks": signal.breaks,
        }

    def document(self) -> dict[str, Any]:
        """Return `figures` with ``rows``: ``said``, ``heard``, ``errors``, ``seconds``, ``clicks`` of each sentence."""
        rows = [
            {
                "said": " ".join(one.said),
                "heard": " ".join(one.heard),
                "errors": one.errors,
                "seconds": one.seconds,
                "clicks": one.signal.clicks,
            }
            for one in self.findings
        ]
        return self.figures() | {"rows": rows}

    def table(self) -> Group:
        """Show the figures and the worst sentences."""
        shown = Table(show_header=False)
        for name, cell in cells(self.figures()).items():
            shown.add_row(name, cell)
        worst = Table("errors", "said", "heard", title="worst sentences", title_justify="left")
        for finding in sorted(self.findings, key=lambda one: -one.errors / len(one.said))[:WORST]:
            if finding.errors:
                worst.add_row(str(finding.errors), " ".join(finding.said), " ".join(finding.heard))
        return Group(shown, worst) if worst.row_count else Group(shown)


def cells(figures: dict[str, Any]) -> dict[str, str]:
    """Format `Verdict.figures` for display, by label."""

    def number(name: str, form: str) -> str:
        return "-" if figures[name] is None else format(figures[name], form)

    return {
        "word error rate": f"{figures['wer']:.1%} ({figures['wer_low']:.1%} to {figures['wer_high']:.1%})",
        "sentences": number("sentences", "d"),
        "audio, s": number("seconds", ".1f"),
        "first audio, ms": number("first_audio_ms", ".0f"),
        "clipped": number("clipped", ".3%"),
        "silent": number("silent", ".1%"),
        "clicks / joins": f"{figures['clicks']} / {figures['joins']}",
        "worst jolt": number("worst_jolt", ".2f"),
        "pitch step at joins": number("join_step", ".2f"),
        "inside chunks": number("inner_step", ".2f"),
        "breaks / voiced joins": f"{figures['breaks']} / {figures['voiced_joins']}",
    }


def _median(values: Any) -> float | None:
    return float(np.median(values)) if len(values) else None
