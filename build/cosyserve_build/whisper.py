"""Text tokenizer of CosyVoice 1: whisper's multilingual one (upstream whisper/tokenizer.py :: get_tokenizer).

Bundles do not contain its vocabulary. ``data/`` has it as the openai-whisper package ships it, under that package's
MIT licence, because the package itself would need a compiler and a gigabyte of dependencies.
"""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from cosyserve.text.tokenizer import Tokenizer

VOCABULARY = Path(__file__).parent / "data" / "whisper_multilingual.tiktoken"

_LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)

SPECIALS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{language}|>" for language in _LANGUAGES.split()),
    *("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
    *(f"<|{0.02 * step:.2f}|>" for step in range(1501)),
]
"""Special tokens in id order after the vocabulary: start, languages, tasks, times."""


def whisper_tokenizer() -> Tokenizer:
    """Build the tokenizer with all its special tokens, 51,866 ids."""
    lines = VOCABULARY.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    names = {token: "".join(_CHARACTERS[byte] for byte in token) for token in ranks}
    merges = [
        (names[left], names[right])
        for left, right in (_halves(token, rank, ranks) for token, rank in ranks.items() if len(token) > 1)
    ]
    encoder = tokenizers.Tokenizer(models.BPE({names[token]: rank for token, rank in ranks.items()}, merges))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # whisper splits like GPT-2, too
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return Tokenizer(encoder)


def _halves(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens from which this one is merged: those left after all earlier merges of its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        at = min(range(len(found)), key=found.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    left, right = parts
    return left, right


def _byte_characters() -> list[str]:
    """List the printable character that byte-level encodings use for each byte, the byte itself if printable."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in characters]
    return [chr_ for _, chr_ in sorted((characters | {byte: chr(256 + i) for i, byte in enumerate(others)}).items())]


_CHARACTERS = _byte_characters()
