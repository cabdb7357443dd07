"""Registered voices: what the models need of a speaker, stored as ``<name>.safetensors`` and ``<name>.json``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cosyserve import limits
from cosyserve.errors import BundleError, InvalidInput, VoiceNotFound, WeightsError

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

# Letters of Latin, Chinese, Japanese and Korean; a name is also a file name.
_LETTERS = "A-Za-z0-9_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_NAME = re.compile(f"[{_LETTERS}](?:[{_LETTERS} .-]*[{_LETTERS}])?")


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
        prompt_mel: float32 [2 P, 80].
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


def is_voice_name(name: str) -> bool:
    """Letters (Latin, Chinese, Japanese, Korean), digits and ``_``, with blanks, dots and hyphens between them."""
    return len(name) <= limits.MAX_VOICE_NAME_CHARS and _NAME.fullmatch(name) is not None


class VoiceStore:
    """The voices of one folder. A voice is read when first asked for, and again after its file has changed.

    Args:
        folder: need not exist before the first `save`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[tuple[int, int], Voice]] = {}

    def list(self) -> list[str]:
        """Names of all voices, sorted."""
        names = (os.fsencode(file.stem).decode("utf-8", "replace") for file in self._folder.glob("*.json"))
        return sorted(filter(is_voice_name, names))

    def get(self, name: str) -> Voice:
        """The voice of that name.

        Raises:
            VoiceNotFound: there is none.
            WeightsError: its files are damaged.
        """
        try:
            found = self._file(name, ".json").stat() if is_voice_name(name) else None
        except FileNotFoundError:
            found = None
        if found is None:
            raise VoiceNotFound(f"no voice named {name[: limits.MAX_VOICE_NAME_CHARS]!r}")
        # The clock of a file system is coarse; a replaced file also has another inode.
        version = (found.st_mtime_ns, found.st_ino)
        known = self._read.get(name)
        if known is None or known[0] != version:
            known = self._read[name] = (version, self._load(name))
        return known[1]

    def _load(self, name: str) -> Voice:
        try:
            described = json.loads(self._file(name, ".json").read_text(encoding="utf-8"))
            tensors = load(self._file(name, ".safetensors").read_bytes())
            voice = Voice(name=name, prompt_text=described["prompt_text"], **tensors)
            intact = voice.digest == described["digest"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise WeightsError(f"the files of voice {name!r} cannot be read") from error
        if not intact:
            raise WeightsError(f"the files of voice {name!r} do not match their checksum")
        return voice

    def save(self, voice: Voice) -> None:
        """Writes or replaces a voice; it exists once its description, written last, is in place.

        Raises:
            InvalidInput: the name cannot be a voice name.
        """
        if not is_voice_name(voice.name):
            raise InvalidInput("voice", f"a name is up to {limits.MAX_VOICE_NAME_CHARS} letters, digits and ' _.-'")
        self._folder.mkdir(parents=True, exist_ok=True)
        described = {"name": voice.name, "prompt_text": voice.prompt_text, "digest": voice.digest}
        _replace(self._file(voice.name, ".safetensors"), save(voice.tensors))
        _replace(self._file(voice.name, ".json"), json.dumps(described, ensure_ascii=False, indent=1).encode())

    def _file(self, name: str, suffix: str) -> Path:
        # Inside Triton's stub Python takes file names for ASCII; this is UTF-8 whatever it takes them for.
        return self._folder / (os.fsdecode(name.encode("utf-8")) + suffix)


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a part."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o644)  # mkstemp makes it private; the server may run as another user
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


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
