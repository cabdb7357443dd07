"""What goes to the server and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cosyserve.contracts import TTS, VOICES, Model, Tensor
from cosyserve_client.errors import invalid

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SpeechOptions(TypedDict, total=False):
    """The fields of `SpeechRequest` besides its text, as keyword arguments of what speaks."""

    voice: str | None
    prompt_audio: NDArray[np.float32] | None
    prompt_sample_rate: int | None
    prompt_text: str | None
    instruct: str | None
    mode: str | None
    source_audio: NDArray[np.float32] | None
    source_sample_rate: int | None
    speed: float | None
    sample_rate: int | None
    seed: int | None
    stream: bool | None
    timestamps: bool | None
    request_id: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SpeechRequest:
    """One utterance to speak. A field left at None is not sent; the server's default holds.

    Attributes:
        text: what to say; None only with `source_audio`.
        voice: name of a registered voice.
        prompt_audio: mono float32 [samples] in -1..1, the voice to clone.
        prompt_sample_rate: of `prompt_audio`, in Hz.
        prompt_text: transcript of `prompt_audio`.
        instruct: how to speak.
        mode: sft, zero_shot, cross_lingual, instruct or vc; inferred by the server when None.
        source_audio: mono float32 [samples] in -1..1, the speech to convert (mode vc).
        source_sample_rate: of `source_audio`, in Hz.
        speed: speaking rate, 0.5 to 2; 1 = as generated.
        sample_rate: of the audio, in Hz: 8000, 16000, 24000, 48000 or the model's own, which None means.
        seed: of all randomness of the request.
        stream: False for full attention, one chunk a segment.
        timestamps: True for the words of each chunk.
        flush: True with a piece of a session: speak what was written so far.
        request_id: what the request is called in the server's log: up to 64 letters, digits and ``_.-``; made up when
            None, or when it is something else.
        traceparent: W3C trace context that the request is part of.

    Raises:
        InvalidArgument: a value is of the wrong Python type, NumPy type or rank; the message starts with the field.
    """

    text: str | None = None
    voice: str | None = None
    prompt_audio: NDArray[np.float32] | None = None
    prompt_sample_rate: int | None = None
    prompt_text: str | None = None
    instruct: str | None = None
    mode: str | None = None
    source_audio: NDArray[np.float32] | None = None
    source_sample_rate: int | None = None
    speed: float | None = None
    sample_rate: int | None = None
    seed: int | None = None
    stream: bool | None = None
    timestamps: bool | None = None
    flush: bool | None = None
    request_id: str | None = None
    traceparent: str | None = None

    def __post_init__(self) -> None:
        self.tensors()
        for name in ("request_id", "traceparent"):
            if not isinstance(value := getattr(self, name), str | None):
                raise invalid(name, f"is {type(value).__name__}, expected str")

    @classmethod
    def of(cls, text: str | SpeechRequest | None, **options: Unpack[SpeechOptions]) -> SpeechRequest:
        """A request from its text, or from another request, with `options` set."""
        if isinstance(text, SpeechRequest):
            return replace(text, **options)
        return cls(text=text, **options)

    def tensors(self) -> list[tuple[Tensor, NDArray[Any]]]:
        """The inputs of model ``tts`` that are set, each with its array in the dtype of its contract."""
        return _set_inputs(self, TTS)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VoiceRequest:
    """One request to model ``voices``: its inputs, None where one is not sent. Raises as `SpeechRequest`."""

    action: str
    voice: str | None = None
    prompt_audio: NDArray[np.float32] | None = None
    prompt_sample_rate: int | None = None
    prompt_text: str | None = None
    consent: str | None = None
    replace: bool | None = None

    def tensors(self) -> list[tuple[Tensor, NDArray[Any]]]:
        """The inputs that are set, as `SpeechRequest.tensors`."""
        return _set_inputs(self, VOICES)


def _set_inputs(request: object, model: Model) -> list[tuple[Tensor, NDArray[Any]]]:
    present = [(tensor, getattr(request, tensor.name)) for tensor in model.inputs]
    return [(tensor, _array(tensor, value)) for tensor, value in present if value is not None]


def _array(tensor: Tensor, value: object) -> NDArray[Any]:
    if tensor.dims == (-1,):
        return _samples(tensor, value)
    if tensor.dtype == "BYTES":
        return np.array([_utf8(tensor, value)], dtype=np.object_)
    return np.array([_number(tensor, value)], dtype=tensor.numpy)


def _samples(tensor: Tensor, value: object) -> NDArray[Any]:
    if not isinstance(value, np.ndarray):
        raise invalid(tensor.name, f"is {type(value).__name__}, expected a float32 array")
    if value.dtype != tensor.numpy or value.ndim != 1:
        raise invalid(tensor.name, f"is {value.dtype} with {value.ndim} axes, expected mono float32 with one axis")
    return value


def _utf8(tensor: Tensor, value: object) -> bytes:
    if not isinstance(value, str):
        raise invalid(tensor.name, f"is {type(value).__name__}, expected str")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise invalid(tensor.name, "has a lone surrogate, which UTF-8 cannot encode") from None


def _number(tensor: Tensor, value: object) -> bool | int | float:
    is_bool = isinstance(value, bool | np.bool_)
    if tensor.dtype == "BOOL" and is_bool:
        return bool(value)
    if tensor.dtype == "FP32" and isinstance(value, Real) and not is_bool:
        if abs(value) > np.finfo(np.float32).max.item():  # type: ignore[operator]
            raise invalid(tensor.name, f"{value} does not fit fp32")
        return float(value)
    if tensor.dtype in ("INT32", "INT64") and isinstance(value, Integral) and not is_bool:
        bounds = np.iinfo(np.dtype(tensor.numpy))
        if not bounds.min <= int(value) <= bounds.max:
            raise invalid(tensor.name, f"{value} does not fit {tensor.dtype.lower()}")
        return int(value)
    wanted = {"BOOL": "bool", "FP32": "float"}.get(tensor.dtype, "int")
    raise invalid(tensor.name, f"is {type(value).__name__}, expected {wanted}")


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or a character of a script without spaces, with the punctuation behind it.

    Attributes:
        text: as the server reads it out: numbers are spelt out.
        start: seconds from the beginning of the audio, estimated.
    """

    text: str
    start: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """What the server knows of a registered voice.

    Attributes:
        name: what requests call it.
        prompt_text: transcript of its prompt; empty when none is known.
        prompt_seconds: length of its prompt.
        digest: SHA-256 of its content.
        consent: note on the speaker's consent; may be empty.
        created: when it was registered, ISO 8601 in UTC; empty for a voice of the bundle.
    """

    name: str
    prompt_text: str
    prompt_seconds: float
    digest: str
    consent: str
    created: str


@dataclass(frozen=True, slots=True, eq=False)
class AudioChunk:
    """One response of the server.

    Attributes:
        pcm: mono int16 [samples], read-only; empty in the final chunk.
        sample_offset: samples sent before this chunk.
        token_offset: speech tokens of this segment spoken before this chunk.
        token_count: speech tokens spoken in this chunk.
        segment: index of the text segment.
        words: that begin in this chunk, if the request asked for timestamps.
        final: True on the last chunk of the utterance.
        sample_rate: in Hz.
    """

    pcm: NDArray[np.int16]
    sample_offset: int
    token_offset: int
    token_count: int
    segment: int
    words: tuple[Word, ...]
    final: bool
    sample_rate: int


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """A whole utterance.

    Attributes:
        pcm: mono int16 [samples].
        sample_rate: in Hz.
    """

    pcm: NDArray[np.int16]
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return len(self.pcm) / self.sample_rate

    @classmethod
    def join(cls, chunks: list[AudioChunk]) -> Speech:
        """The audio of all `chunks` of one utterance, of which there is at least one."""
        return cls(np.concatenate([chunk.pcm for chunk in chunks]), chunks[0].sample_rate)
