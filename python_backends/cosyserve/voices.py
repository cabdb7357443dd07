"""Registered voices: what the models need of a speaker, stored as ``<name>.safetensors``."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cosyserve import limits
from cosyserve.errors import (
    BundleError,
    InvalidInput,
    Overloaded,
    Unsupported,
    VoiceExists,
    VoiceNotFound,
    WeightsError,
)

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

# Letters of Latin, Chinese, Japanese and Korean; a name is also a file name.
_LETTERS = "A-Za-z0-9_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_NAME = re.compile(f"[{_LETTERS}](?:[{_LETTERS} .-]*[{_LETTERS}])?")


SUFFIX = ".safetensors"

_DESCRIPTION = "voice"
"""Entry of the file's header that holds a voice's description in JSON."""


def _no_tokens() -> Int32:
    return np.zeros(0, np.int32)


def _no_mel() -> Float32:
    return np.zeros((0, 80), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """One speaker.

    Attributes:
        name: what requests call it.
        speaker_embedding: float32 [192], not normalised.
        prompt_text: transcript of the prompt; empty when only its token ids, or nothing, is known.
        prompt_text_tokens: int32 [n], the transcript's ids where the text is not known.
        llm_prompt_tokens: int32 [P], speech tokens for the LLM.
        flow_prompt_tokens: int32 [P], speech tokens for the flow.
        prompt_mel: float32 [frames, 80]: 2 P but for CosyVoice 1, which stretches the tokens to it.
    """

    name: str
    speaker_embedding: Float32
    prompt_text: str = ""
    prompt_text_tokens: Int32 = field(default_factory=_no_tokens)
    llm_prompt_tokens: Int32 = field(default_factory=_no_tokens)
    flow_prompt_tokens: Int32 = field(default_factory=_no_tokens)
    prompt_mel: Float32 = field(default_factory=_no_mel)

    @property
    def has_prompt(self) -> bool:
        """Whether there is speech to continue; otherwise the voice is a speaker embedding only."""
        return len(self.flow_prompt_tokens) > 0

    @property
    def has_transcript(self) -> bool:
        """Whether it is known what the prompt says."""
        return bool(self.prompt_text) or len(self.prompt_text_tokens) > 0

    @property
    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by attribute name, contiguous and of their declared types."""
        return {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in _DTYPES.items()}

    @property
    def digest(self) -> str:
        """SHA-256 over transcript and arrays, but not the name: equal voices have equal digests."""
        content = hashlib.sha256(self.prompt_text.encode())
        for name, tensor in self.tensors.items():
            content.update(f"|{name}{tensor.shape}".encode())
            content.update(tensor.tobytes())
        return content.hexdigest()


_DTYPES: dict[str, type[np.generic]] = {
    "speaker_embedding": np.float32,
    "prompt_text_tokens": np.int32,
    "llm_prompt_tokens": np.int32,
    "flow_prompt_tokens": np.int32,
    "prompt_mel": np.float32,
}


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of a voice besides its tensors.

    Attributes:
        name: what requests call it.
        prompt_tokens: speech tokens of its prompt.
        prompt_text: transcript; empty when none is known.
        digest: see `Voice.digest`.
        consent: what is known of the speaker's consent.
        created: when it was registered, ISO 8601 in UTC; empty for a voice of the bundle.
    """

    name: str
    prompt_tokens: int
    prompt_text: str
    digest: str
    consent: str
    created: str


def is_voice_name(name: str) -> bool:
    """Letters (Latin, Chinese, Japanese, Korean), digits and ``_``, with blanks, dots and hyphens between them."""
    return len(name) <= limits.MAX_VOICE_NAME_CHARS and _NAME.fullmatch(name) is not None


class VoiceStore:
    """The voices of one folder, which any number of processes and replicas may share.

    A voice is one file, so a reader sees all of one version: safetensors with a description in its header. A
    new file is linked into place or moved over the old one, both in one step. What was read stays in memory and is
    read again after its file has changed.

    Args:
        folder: need not exist before the first `save`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: OrderedDict[str, tuple[tuple[int, int], Voice]] = OrderedDict()
        self._lock = Lock()

    def list(self) -> list[str]:
        """Names of all voices, sorted."""
        names = (os.fsencode(file.stem).decode("utf-8", "replace") for file in self._folder.glob(f"*{SUFFIX}"))
        return sorted(filter(is_voice_name, names))

    def default(self) -> str | None:
        """The oldest voice, whose place no new one takes; None when there is none."""
        oldest = min(self.cards(), key=lambda card: (card.created, card.name), default=None)
        return oldest.name if oldest else None

    def cards(self) -> Sequence[Card]:
        """What is known of each voice, sorted by name; damaged ones and those deleted meanwhile are left out."""
        cards = []
        for name in self.list():
            with suppress(VoiceNotFound, WeightsError):
                cards.append(self.card(name))
        return cards

    def card(self, name: str) -> Card:
        """What is known of a voice; raises as `get`."""
        with self._open(name) as file, _readable(name):
            return _card(name, _header(file))

    def get(self, name: str) -> Voice:
        """The voice of that name.

        Raises:
            VoiceNotFound: there is none.
            WeightsError: its file is damaged.
        """
        with self._open(name) as file:
            found = os.fstat(file.fileno())
            # The clock of a file system is coarse; a replaced file also has another inode.
            version = (found.st_mtime_ns, found.st_ino)
            with self._lock:
                known = self._read.get(name)
            if known is None or known[0] != version:
                known = (version, _load(name, file))
        with self._lock:
            self._read[name] = known
            self._read.move_to_end(name)
            if len(self._read) > limits.CACHED_PROMPTS:
                self._read.popitem(last=False)  # evict the least recently used
        return known[1]

    def check_new(self, name: str, *, replace: bool) -> None:
        """Refuses a voice that could not be saved, before its audio is listened to. Raises as `save`."""
        if not is_voice_name(name):
            raise InvalidInput("voice", f"a name is up to {limits.MAX_VOICE_NAME_CHARS} letters, digits and ' _.-'")
        names = self.list()
        if name in names:
            if not replace:
                raise VoiceExists(f"there is a voice named {name!r}; remove or replace it")
        elif len(names) >= limits.MAX_VOICES:
            raise Overloaded(f"this server has {len(names)} voices, as many as it may; remove one first")

    def save(self, voice: Voice, *, consent: str = "", created: str = "", replace: bool = False) -> Card:
        """Writes a voice.

        Args:
            voice: under its name.
            consent: what is known of the speaker's consent.
            created: when it was registered, ISO 8601 in UTC; empty for a voice of the bundle.
            replace: whether it may take the place of another.

        Raises:
            InvalidInput: the name cannot be a voice name, or the note is too long.
            VoiceExists: there is a voice of that name, and it is not to be replaced.
            Overloaded: there are too many voices (replicas that save at once may exceed the bound by one each), or
                the disk is full.
            Unsupported: the folder cannot be written.
        """
        self.check_new(voice.name, replace=replace)
        if len(consent) > limits.MAX_CONSENT_CHARS:
            raise InvalidInput("consent", f"has {len(consent)} characters, at most {limits.MAX_CONSENT_CHARS} allowed")
        described = {
            "prompt_text": voice.prompt_text,
            "digest": voice.digest,
            "consent": consent,
            "created": created,
        }
        content = save(voice.tensors, {_DESCRIPTION: json.dumps(described, ensure_ascii=False)})
        with _writable():
            self._folder.mkdir(parents=True, exist_ok=True)
            _place(content, self._file(voice.name), replace)
        return Card(voice.name, len(voice.flow_prompt_tokens), **described)

    def delete(self, name: str) -> Card:
        """Removes a voice; streams that speak with it go on. Returns what was known of it.

        Raises:
            VoiceNotFound: there is none.
            Unsupported: the folder cannot be written.
        """
        try:
            card = self.card(name)
        except WeightsError:  # a damaged voice can be removed too
            card = Card(name, 0, "", "", "", "")
        with _writable():
            try:
                os.unlink(self._file(name))
            except FileNotFoundError:
                raise _not_found(name) from None
        return card

    def _open(self, name: str) -> BinaryIO:
        if not is_voice_name(name):
            raise _not_found(name)
        try:
            return open(self._file(name), "rb")
        except FileNotFoundError:
            raise _not_found(name) from None

    def _file(self, name: str) -> Path:
        # Inside Triton's stub Python takes file names for ASCII; this is UTF-8 whatever it takes them for.
        return self._folder / (os.fsdecode(name.encode("utf-8")) + SUFFIX)


def _not_found(name: str) -> VoiceNotFound:
    return VoiceNotFound(f"no voice named {name[: limits.MAX_VOICE_NAME_CHARS]!r}")


def _load(name: str, file: BinaryIO) -> Voice:
    with _readable(name):
        card = _card(name, _header(file))
        file.seek(0)
        voice = Voice(name=name, prompt_text=card.prompt_text, **load(file.read()))
        intact = voice.digest == card.digest
    if not intact:
        raise WeightsError(f"the file of voice {name!r} does not match its checksum")
    return voice


def _header(file: BinaryIO) -> Any:
    """Layout: 8 bytes of header length, then the header in JSON."""
    length = int.from_bytes(file.read(8), "little")
    if length > os.fstat(file.fileno()).st_size:
        raise ValueError("the header is cut short")
    return json.loads(file.read(length))


def _card(name: str, header: Any) -> Card:
    return Card(name, header["flow_prompt_tokens"]["shape"][0], **json.loads(header["__metadata__"][_DESCRIPTION]))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise WeightsError(f"the file of voice {name!r} cannot be read") from error


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Overloaded("the disk that holds the voices is full") from error
        raise Unsupported("voices cannot be changed here: their folder is read-only") from error


def _place(content: bytes, path: Path, replace: bool) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a part."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o644)  # mkstemp makes it private; the server may run as another user
        if replace:
            os.replace(part, path)
        else:
            os.link(part, path)  # unlike a move, it fails if another process was faster
    except FileExistsError:
        raise VoiceExists("there is a voice of that name meanwhile; remove or replace it") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)


def voices_from_spk2info(speakers: Mapping[str, Mapping[str, NDArray[np.generic]]]) -> list[Voice]:
    """Voices of a bundle's ``spk2info.pt``, its tensors given as numpy arrays with their leading batch axis.

    Both of upstream's entries are read: a plain ``embedding`` [1, 192], and what ``add_zero_shot_spk`` stores. The
    latter holds the transcript as token ids only.

    Raises:
        BundleError: an entry has no speaker embedding, or its name cannot be a voice name.
    """
    return [_from_speaker(name, entry) for name, entry in speakers.items()]


def _from_speaker(name: str, entry: Mapping[str, NDArray[np.generic]]) -> Voice:
    if not is_voice_name(name):
        raise BundleError(f"spk2info.pt: {name!r} cannot be a voice name")
    embedding = entry.get("flow_embedding", entry.get("embedding"))
    if embedding is None:
        raise BundleError(f"spk2info.pt: speaker {name!r} has no embedding")

    def tokens(key: str) -> Int32:
        return entry[key].reshape(-1).astype(np.int32) if key in entry else _no_tokens()

    mel = entry.get("prompt_speech_feat")
    return Voice(
        name=name,
        speaker_embedding=embedding.reshape(-1).astype(np.float32),
        prompt_text_tokens=tokens("prompt_text"),
        llm_prompt_tokens=tokens("llm_prompt_speech_token"),
        flow_prompt_tokens=tokens("flow_prompt_speech_token"),
        prompt_mel=_no_mel() if mel is None else mel.reshape(-1, mel.shape[-1]).astype(np.float32),
    )
