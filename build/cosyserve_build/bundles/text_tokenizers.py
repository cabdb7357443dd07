"""Loaders of the text tokenizers."""

from __future__ import annotations

from pathlib import Path

from cosyserve.text.tokenizer import Tokenizer
from cosyserve.versions.base import Version
from cosyserve_build.bundles.parts import QWEN
from cosyserve_build.whisper import whisper_tokenizer


def whisper(folder: Path, version: Version) -> Tokenizer:
    """Load whisper's tokenizer, which is not part of a bundle."""
    return whisper_tokenizer()


def qwen2(folder: Path, version: Version) -> Tokenizer:
    """Load Qwen2's tokenizer from the bundle, with the special tokens of the version."""
    return Tokenizer.from_bundle(folder / QWEN, version.number)
