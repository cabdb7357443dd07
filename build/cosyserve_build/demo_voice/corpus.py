"""Training corpus: utterances of each source voice, on disk in shards."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve_build.demo_voice.source import SPEAKERS, Recording, Speaker, speak
from cosyserve_build.judge.sentences import SEED, TAUGHT, sentences

SHARD = 250  # utterances in one file
SAID = {"slt": TAUGHT, "rms": 5_000}
"""Number of sentences that each speaker says."""


@dataclass(frozen=True)
class _Order:
    path: Path
    speaker: Speaker
    start: int


def build(folder: Path, report: Callable[[str], None]) -> None:
    """Synthesise and store the missing shards in `folder`; every speaker says the same sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    orders = [
        _Order(_shard(folder, speaker.name, start), speaker, start)
        for start in range(0, max(SAID.values()), SHARD)
        for speaker in SPEAKERS
        if start < SAID[speaker.name]
    ]
    missing = [order for order in orders if not order.path.is_file()]
    with multiprocessing.Pool() as pool:
        for done, order in enumerate(pool.imap(_write, missing), len(orders) - len(missing) + 1):
            report(f"{order.path.name}: said ({done} of {len(orders)} files)")


def read(folder: Path, speaker: str, count: int) -> list[Recording]:
    """Read the first `count` utterances of a speaker, a multiple of `SHARD`."""
    found: list[Recording] = []
    for first in range(0, count, SHARD):
        with np.load(_shard(folder, speaker, first)) as arrays:
            names = [field.name for field in fields(Recording)]
            texts, parts = arrays["text"], {name: arrays[name] for name in names if name != "text"}
            stops = np.cumsum(arrays["lengths"])
            for text, length, stop in zip(texts, arrays["lengths"], stops, strict=True):
                own = {}
                for name, whole in parts.items():
                    each = len(whole) // stops[-1]  # rows of a token
                    own[name] = whole[(stop - length) * each : stop * each]
                found.append(Recording(text=str(text), **own))
    return found


def read_tokens(folder: Path, speaker: str, count: int) -> list[tuple[str, NDArray[np.int64]]]:
    """Read text and speech tokens [N] of the first `count` utterances of a speaker, a multiple of `SHARD`."""
    found: list[tuple[str, NDArray[np.int64]]] = []
    for first in range(0, count, SHARD):
        with np.load(_shard(folder, speaker, first)) as arrays:
            parts = np.split(arrays["tokens"].astype(np.int64), np.cumsum(arrays["lengths"])[:-1])
            found += zip(map(str, arrays["text"]), parts, strict=True)
    return found


def _shard(folder: Path, speaker: str, start: int) -> Path:
    return folder / f"{speaker}-{start:05d}.npz"


def _write(order: _Order) -> _Order:
    said = [speak(text, order.speaker) for text in itertools.islice(sentences(SEED), order.start, order.start + SHARD)]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(u, name) for u in said]) for name in ("wave", "mel", "f0", "tokens")
    }
    partial = order.path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, text=[u.text for u in said], lengths=[len(u.tokens) for u in said], **arrays)
    partial.rename(order.path)
    return order
