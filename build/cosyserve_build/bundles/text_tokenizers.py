"""The text tokenizer of a bundle."""

from __future__ import annotations

from pathlib import Path

from cosyserve.text.tokenizer import Tokenizer
from cosyserve.versions.base import Version
from cosyserve_build.bundles.parts import QWEN
from cosyserve_build.whisper import whisper_tokenizer


def whisper(folder: Path, version: Version) -> Tokenizer:
    """Whisper's, which no bundle holds."""
    return whisper_tokenizer()


def qwen2(folder: Path, version: Version) -> Tokenizer:
    """Qwen2's, with the special tokens of the version."""
    return Tokenizer.from_bundle(folder / QWEN, version.number)
