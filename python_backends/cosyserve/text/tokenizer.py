"""Text to token ids (upstream tokenizer/tokenizer.py :: CosyVoice2Tokenizer)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from cosyserve.errors import BundleError, WeightsError

END_OF_PROMPT = "<|endofprompt|>"

_SPEECH_TAGS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", END_OF_PROMPT),
    *("[breath]", "<strong>", "</strong>", "[noise]", "[laughter]", "[cough]", "[clucking]", "[accent]"),
    *("[quick_breath]", "<laughter>", "</laughter>", "[hissing]", "[sigh]", "[vocalized-noise]", "[lipsmack]"),
    "[mn]",
)

# ARPABET; a vowel (*) also stands with each of its three stresses.
_ENGLISH = (
    "AA* AE* AH* AO* AW* AY* B CH D DH EH* ER* EY* F G HH IH* IY* JH K L M N NG OW* OY* P R S SH T TH UH* UW* "
    "V W Y Z ZH"
)

# Initials and finals of pinyin with their tones.
_CHINESE = """
a ai an ang ao b c ch d e ei en eng f g h i ian in ing iu ià iàn iàng iào iá ián iáng iáo iè ié iòng ióng iù iú iā iān
iāng iāo iē iě iōng iū iǎ iǎn iǎng iǎo iǒng iǔ j k l m n o ong ou p q r s sh t u uang ue un uo uà uài uàn uàng uá uái
uán uáng uè ué uì uí uò uó uā uāi uān uāng uē uě uī uō uǎ uǎi uǎn uǎng uǐ uǒ vè w x y z zh à ài àn àng ào á ái án áng
áo è èi èn èng èr é éi én éng ér ì ìn ìng í ín íng ò òng òu ó óng óu ù ùn ú ún ā āi ān āng āo ē ēi ēn ēng ě ěi ěn ěng
ěr ī īn īng ō ōng ōu ū ūn ǎ ǎi ǎn ǎng ǎo ǐ ǐn ǐng ǒ ǒng ǒu ǔ ǔn ǘ ǚ ǜ
"""


def _phones() -> list[str]:
    """``[AA]``, ``[AA0]``, .. ``[zh]``, .. ``[ǜ]`` in id order."""
    english = [
        phone.rstrip("*") + stress
        for phone in _ENGLISH.split()
        for stress in (("", "0", "1", "2") if phone.endswith("*") else ("",))
    ]
    return [f"[{phone}]" for phone in (*english, *_CHINESE.split())]


SPECIALS: dict[int, tuple[str, ...]] = {
    2: _SPEECH_TAGS,
    3: (*_SPEECH_TAGS, "<|endofsystem|>", *_phones()),
}
"""Special tokens of each model version, in id order after the vocabulary: Qwen2's own, then CosyVoice's."""

LANGUAGE_TAGS = ("<|zh|>", "<|en|>", "<|ja|>", "<|yue|>", "<|ko|>")
"""The languages that CosyVoice 1 was taught to tell apart, as tags before a text."""

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
            BundleError: a file is missing or malformed, or the version is not known.
        """
        if version not in SPECIALS:
            raise BundleError(f"no tokenizer is known for CosyVoice version {version}")
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
        encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS[version]])
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
