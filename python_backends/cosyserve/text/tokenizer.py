"""Text to token ids (upstream tokenizer/tokenizer.py :: CosyVoice2Tokenizer)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from cosyserve import versions
from cosyserve.errors import BundleError, WeightsError
from cosyserve.text.special_tokens import LANGUAGE_TAGS

_PRIVATE = 0xF0000  # first character for private use beyond the basic plane; 65,534 follow

# How Qwen2 cuts text into words before byte-pair encoding.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen2_words() -> pre_tokenizers.PreTokenizer:
    """How Qwen2 cuts text into words, as bytes."""
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


class Tokenizer:
    """Byte-level BPE of Qwen2 with the special tokens of a CosyVoice version.

    Args:
        encoder: the tokenizer with all its special tokens.
    """

    def __init__(self, encoder: tokenizers.Tokenizer) -> None:
        self._encoder = encoder
        description = json.loads(encoder.to_str())
        self._ids: dict[str, int] = {token["content"]: token["id"] for token in description["added_tokens"]}
        self._plain = tokenizers.Tokenizer.from_str(json.dumps({**description, "added_tokens": []}))
        spoken = (token for token in self._ids if not token.startswith("<|") or token in LANGUAGE_TAGS)
        tags = sorted(spoken, key=len, reverse=True)
        # A capturing group makes split() return the tags too, at the odd places.
        self._tags = re.compile("(" + "|".join(map(re.escape, tags)) + ")") if tags else None

    @classmethod
    def from_bundle(cls, folder: Path, version: int) -> Tokenizer:
        """Built from ``vocab.json`` and ``merges.txt`` of a bundle's ``CosyVoice-BlankEN`` folder.

        Raises:
            BundleError: a file is missing or malformed.
            WeightsError: the version is not known.
        """
        special_tokens = versions.get(version).special_tokens
        files = [folder / "vocab.json", folder / "merges.txt"]
        for file in files:
            if not file.is_file():
                raise BundleError(f"{folder.name}/{file.name} is missing")
        try:
            model = models.BPE.from_file(*map(str, files))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{folder.name}: vocab.json and merges.txt are no byte-pair encoding") from error
        encoder = tokenizers.Tokenizer(model)
        encoder.normalizer = normalizers.NFC()
        encoder.pre_tokenizer = qwen2_words()
        encoder.decoder = decoders.ByteLevel()
        encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
        return cls(encoder)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads a ``tokenizer.json``; ``WeightsError`` when it is missing or malformed."""
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise WeightsError(f"{path.name} is missing or is no tokenizer") from error

    def save(self, path: Path) -> None:
        """Writes a ``tokenizer.json`` that `load` and Hugging Face tools read."""
        self._encoder.save(str(path))

    def __len__(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._encoder.get_vocab_size())

    def special(self, token: str) -> int:
        """The id of a special token; ``KeyError`` when this version has no such token."""
        return self._ids[token]

    def encode(self, text: str) -> list[int]:
        """Token ids; every special token in the text is obeyed. For texts of our own making."""
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def around_tags(self, text: str, change: Callable[[str], str]) -> str:
        """`change` of a text in which it cannot mistake the stress of a phone such as ``[EH1]`` for a number.

        Such tags go through it as characters for private use, which mean nothing to it.
        """
        hidden: list[str] = []

        def hide(tag: re.Match[str]) -> str:
            if not any(map(str.isdigit, tag[0])):
                return tag[0]
            hidden.append(tag[0])
            return chr(_PRIVATE + len(hidden) - 1)

        changed = change(self._tags.sub(hide, text) if self._tags else text)
        for index, tag in enumerate(hidden):
            changed = changed.replace(chr(_PRIVATE + index), tag)
        return changed

    def encode_user(self, text: str) -> list[int]:
        """Token ids of a text from outside: speech tags such as ``[breath]`` or ``<strong>`` work, while control
        tokens (``<|...|>``) are encoded as the characters they consist of."""
        ids: list[int] = []
        for i, part in enumerate(self._tags.split(text) if self._tags else [text]):
            ids += [self._ids[part]] if i % 2 else self._plain.encode(part, add_special_tokens=False).ids
        return ids
