"""The Triton models, their tensors and how they are scheduled: written once, rendered to ``config.pbtxt``.

Adapters, client, BLS calls and tests read types and shapes from here.
Shapes leave out the batch dimension. ``-1`` is a variable length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cosyserve import limits
from cosyserve.versions import BUILT_IN
from cosyserve.versions.base import Version

SAMPLE_RATE_PARAMETER = "sample_rate"
"""Parameter in the configuration of `tts` that tells clients the rate of its audio in Hz. It is not a setting."""

Tensors = dict[str, NDArray[np.generic]]
"""Values by tensor name."""


class Scheduling(Enum):
    """How Triton hands requests to a model."""

    PLAIN = "plain"  # one request a call, no batch dimension
    DECOUPLED = "decoupled"  # one request a call, any number of responses
    SINGLE = "single"  # the same, with a batch dimension of one
    SEQUENCE = "sequence"  # batched over live sequences, state kept per correlation id
    ENSEMBLE = "ensemble"  # a graph of other models


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output.

    Attributes:
        name: tensor name on the wire.
        dtype: Triton type without prefix (``BYTES``, ``FP32``, ``INT32``, ``INT64``, ``INT16``, ``BOOL``).
        dims: shape without batch dimension.
        doc: meaning and unit; the tables of docs/api.md are made of those that users see.
        optional: whether a request, or a response to one that did not ask for it, may leave it out.
        most: bound on a variable length of an input; 0 where the model itself bounds it.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    doc: str
    optional: bool = False
    most: int = 0

    @property
    def numpy(self) -> DTypeLike:
        """The numpy type that carries this tensor."""
        return NUMPY_TYPES[self.dtype]


NUMPY_TYPES: dict[str, DTypeLike] = {
    "BYTES": np.object_,
    "FP32": np.float32,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One step of an ensemble: model name, and (model tensor, ensemble tensor) pairs."""

    model: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Model:
    """One Triton model."""

    name: str
    scheduling: Scheduling
    doc: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    computes: bool = True  # gets a GPU in the GPU flavour
    steps: tuple[EnsembleStep, ...] = ()

    def input(self, name: str) -> Tensor:
        """The input called `name`; ``KeyError`` when there is none."""
        return _named(self.inputs, name)

    def output(self, name: str) -> Tensor:
        """The output called `name`; ``KeyError`` when there is none."""
        return _named(self.outputs, name)


def _named(tensors: tuple[Tensor, ...], name: str) -> Tensor:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise KeyError(name)


MODES = {
    "sft": ("a registered voice", "`prompt_audio`, `instruct`"),
    "zero_shot": ("prompt speech and its transcript", "`instruct`"),
    "cross_lingual": ("prompt speech", "`instruct`"),
    "instruct": ("`instruct`", "nothing"),
    "vc": ("`source_audio`, `source_sample_rate`", "`text`, text in pieces"),
}
"""Values of the ``mode`` input, with what each needs and refuses; inferred from the other inputs when absent."""

TTS = Model(
    "tts",
    Scheduling.DECOUPLED,
    "Text to speech: the model that users call. Streams audio chunks; the last response has final = true. "
    "Text in pieces: requests with one correlation id. The one that starts the sequence opens a session and gets all "
    "its audio as responses; it may have text. Each further one has text, a flush, or ends the sequence (or several of "
    "these), and gets an empty final response, or an error. A flush ends a segment as the end of a text would, and the "
    "next text begins another in the same voice; the end of the sequence flushes too.",
    inputs=(
        Tensor(
            "text",
            "BYTES",
            (1,),
            "what to speak, UTF-8, up to 4,096 characters; not together with `source_audio`",
            optional=True,
        ),
        Tensor(
            "voice",
            "BYTES",
            (1,),
            "a registered voice; without it and without `prompt_audio` the oldest one speaks",
            optional=True,
        ),
        Tensor(
            "prompt_audio",
            "FP32",
            (-1,),
            "the voice to clone: mono samples in -1..1, 0.5 to 30 s; not together with `voice`",
            optional=True,
        ),
        Tensor(
            "prompt_sample_rate",
            "INT32",
            (1,),
            "its rate, 16,000 to 192,000 Hz; required with `prompt_audio`",
            optional=True,
        ),
        Tensor("prompt_text", "BYTES", (1,), "what is said in `prompt_audio`, up to 1,024 characters", optional=True),
        Tensor("instruct", "BYTES", (1,), "how to speak, up to 512 characters", optional=True),
        Tensor("mode", "BYTES", (1,), "one of the modes; inferred when absent", optional=True),
        Tensor("source_audio", "FP32", (-1,), "speech to say in the voice, mono, 0.5 to 300 s", optional=True),
        Tensor("source_sample_rate", "INT32", (1,), "its rate; required with `source_audio`", optional=True),
        Tensor("speed", "FP32", (1,), "speaking rate, 0.5 to 2; 1 is as generated", optional=True),
        Tensor(
            "sample_rate",
            "INT32",
            (1,),
            "of the audio: 8000, 16000, 24000, 48000 or the model's own, which is the default",
            optional=True,
        ),
        Tensor(
            "seed",
            "INT64",
            (1,),
            "same text, voice and seed: same samples, at any load (on GPUs the same speech tokens); random when absent",
            optional=True,
        ),
        Tensor(
            "stream",
            "BOOL",
            (1,),
            "false: full attention, one chunk for each text segment; true when absent",
            optional=True,
        ),
        Tensor("timestamps", "BOOL", (1,), "true: tell when each word begins", optional=True),
        Tensor("flush", "BOOL", (1,), "text in pieces only: speak what was written so far", optional=True),
    ),
    outputs=(
        Tensor("audio", "INT16", (-1,), "the next samples, mono, at the rate asked for"),
        Tensor("sample_offset", "INT64", (1,), "samples sent before this chunk"),
        Tensor("token_offset", "INT32", (1,), "speech tokens of this segment spoken before this chunk"),
        Tensor("token_count", "INT32", (1,), "speech tokens spoken in this chunk"),
        Tensor("segment", "INT32", (1,), "which piece of the text, from 0: long texts are cut between sentences"),
        Tensor(
            "words",
            "BYTES",
            (-1,),
            "with `timestamps`: words, or characters of Chinese, Japanese and Korean, that begin in this chunk",
            optional=True,
        ),
        Tensor("word_starts", "FP32", (-1,), "seconds of audio before each of them, estimated", optional=True),
        Tensor(
            "final",
            "BOOL",
            (1,),
            "true on the last response, which has no audio: a cut stream can be told from a finished one",
        ),
    ),
    computes=False,
)

_VOICE = (
    Tensor(
        "flow_prompt_tokens",
        "INT32",
        (-1,),
        "speech tokens of the prompt, for the flow",
        optional=True,
        most=limits.MAX_PROMPT_TOKENS,
    ),
    Tensor("prompt_mel", "FP32", (-1, 80), "log-mel of the prompt", optional=True, most=limits.MAX_PROMPT_FRAMES),
    Tensor("speaker_embedding", "FP32", (192,), "CAMPPlus speaker vector", optional=True),
)

FRONTEND = Model(
    "frontend",
    Scheduling.PLAIN,
    "Checks a request and turns it into model inputs: text segments to token ids, prompt audio to features. "
    "Text in pieces: with continues and no text, the features of the voice; with both, the token ids of complete "
    "words, the first segment of which goes on with the open one. A last segment without ids has yet to begin.",
    inputs=(
        *(t for t in TTS.inputs if t.name not in ("seed", "stream", "timestamps", "flush")),
        Tensor("listen", "BOOL", (1,), "given: the voice of prompt_audio is wanted, and no text", optional=True),
        Tensor("continues", "INT32", (1,), "text in pieces: token ids in the open segment", optional=True),
    ),
    outputs=(
        Tensor("text_tokens", "INT32", (-1,), "token ids of all segments, one after another"),
        Tensor("speech_tokens", "INT32", (-1,), "speech tokens of source_audio, instead of text (mode vc)"),
        Tensor("segment_lengths", "INT32", (-1,), "token ids, or speech tokens in mode vc, of each segment"),
        Tensor("segment_texts", "BYTES", (-1,), "each segment as it is spoken, UTF-8"),
        Tensor("prompt_text_tokens", "INT32", (-1,), "token ids before the text: transcript or instruction"),
        Tensor("llm_prompt_tokens", "INT32", (-1,), "speech tokens of the prompt, for the LLM"),
        Tensor("llm_speaker_embedding", "FP32", (-1,), "speaker vector for the LLM, where it takes one; else empty"),
        *(Tensor(t.name, t.dtype, t.dims, t.doc) for t in _VOICE),
    ),
    computes=False,
)


def _upstream(version: Version) -> Model:
    return Model(
        version.upstream,
        Scheduling.SINGLE,
        f"tts under the contract of upstream's Triton model for CosyVoice {version.number}; see `cosyserve.compat`.",
        inputs=(
            Tensor("reference_wav", "FP32", (-1,), "the voice to clone, 16 kHz mono, -1..1", optional=True),
            Tensor("reference_wav_len", "INT32", (1,), "samples of it, without padding", optional=True),
            Tensor("reference_text", "BYTES", (1,), "its transcript", optional=True),
            Tensor("target_text", "BYTES", (1,), "text to speak"),
        ),
        outputs=(Tensor("waveform", "FP32", (-1,), "the next samples at 24 kHz, -1..1"),),
        computes=False,
    )


UPSTREAM = tuple(_upstream(version) for version in BUILT_IN if version.upstream)

ACTIONS = ("register", "list", "describe", "delete")
"""Values of the ``action`` input of `VOICES`."""

VOICES = Model(
    "voices",
    Scheduling.PLAIN,
    "Registers, lists, describes and deletes voices. The answer describes those it is about, deleted ones included.",
    inputs=(
        Tensor("action", "BYTES", (1,), " or ".join(", ".join(f"`{each}`" for each in ACTIONS).rsplit(", ", 1))),
        Tensor("voice", "BYTES", (1,), "its name; required but for `list`", optional=True),
        *(
            replace(TTS.input(name), doc="with `register`: as for `tts`")
            for name in ("prompt_audio", "prompt_sample_rate")
        ),
        replace(TTS.input("prompt_text"), doc="with `register`: what is said"),
        Tensor(
            "consent",
            "BYTES",
            (1,),
            "with `register`: note on the speaker's consent, up to 1,024 characters",
            optional=True,
        ),
        Tensor("replace", "BOOL", (1,), "with `register`: true: may take the place of another voice", optional=True),
    ),
    outputs=(
        Tensor(
            "voices",
            "BYTES",
            (-1,),
            "a JSON object for each voice that the request is about, deleted ones included: `name`, `prompt_text`, "
            "`prompt_seconds`, `digest` (SHA-256 of transcript and tensors), `consent`, `created` (ISO 8601, UTC; "
            "empty for a voice of the bundle)",
        ),
    ),
    computes=False,
)

LLM = Model(
    "llm",
    Scheduling.PLAIN,
    "Speech tokens from text tokens, in small groups as they are sampled. One engine batches all utterances. A request "
    "with text and seed opens an utterance; one with its id alone asks for what comes next, and is answered when there "
    "is some; one with id and text adds to a text that was opened with more = true. The opening of such a text and all "
    "additions are answered at once, and so is who asks then. (Not decoupled: Triton 2.51's iterator over a decoupled "
    "inner model corrupts its caller's memory.)",
    inputs=(
        Tensor("utterance", "INT64", (1,), "id of the utterance, unique while it runs"),
        Tensor("stop", "BOOL", (1,), "given: end the utterance of this id", optional=True),
        Tensor(
            "text_tokens",
            "INT32",
            (-1,),
            "token ids of one segment, or the next of them",
            optional=True,
            most=limits.MAX_SEGMENT_TEXT_TOKENS,
        ),
        Tensor("more", "BOOL", (1,), "true: further token ids of the segment follow", optional=True),
        Tensor(
            "prompt_text_tokens",
            "INT32",
            (-1,),
            "token ids before the text",
            optional=True,
            most=limits.MAX_PROMPT_TEXT_TOKENS,
        ),
        Tensor(
            "llm_prompt_tokens",
            "INT32",
            (-1,),
            "speech tokens of the prompt",
            optional=True,
            most=limits.MAX_PROMPT_TOKENS,
        ),
        Tensor(
            "llm_speaker_embedding",
            "FP32",
            (-1,),
            "speaker vector, where the model takes one",
            optional=True,
            most=192,
        ),
        Tensor("seed", "INT64", (1,), "seed of the sampler", optional=True),
    ),
    outputs=(
        Tensor("speech_tokens", "INT32", (-1,), "the next speech tokens"),
        Tensor("final", "BOOL", (1,), "true: no token follows"),
    ),
)

_DEADLINE = Tensor("deadline", "INT64", (1,), "ns of the monotonic clock; earlier goes first", optional=True)
_STREAM = Tensor("stream", "BOOL", (1,), "at sequence start: false for whole segments at once", optional=True)
_SEED = Tensor("seed", "INT64", (1,), "with a segment's first tokens or mel frames: seed of its noise", optional=True)
_EXPECTED = Tensor(
    "expected_tokens",
    "INT32",
    (1,),
    "at sequence start: speech tokens that the longest segment may come to, for which memory is reserved",
    optional=True,
)
_FLOW_INPUTS = (
    Tensor("speech_tokens", "INT32", (-1,), "the next speech tokens, any number", most=limits.MAX_NOISE_FRAMES),
    Tensor("final", "BOOL", (1,), "true: no token of this segment follows; the next step begins another segment"),
    _DEADLINE,
    _STREAM,
    _SEED,
    _EXPECTED,
    *_VOICE,
)
_MEL = Tensor("mel", "FP32", (80, -1), "the next mel frames", most=limits.MAX_NOISE_FRAMES)
_HIFT_INPUTS = (
    Tensor("speed", "FP32", (1,), "at sequence start: speaking rate", optional=True),
    Tensor("sample_rate", "INT32", (1,), "at sequence start: rate of the audio in Hz", optional=True),
)
_AUDIO = Tensor("audio", "INT16", (-1,), "the next PCM samples")

FLOW = Model(
    "flow",
    Scheduling.SEQUENCE,
    "Speech tokens to mel frames. Owns encoder, Euler solver and their caches. A sequence is an utterance, segment by "
    "segment; the voice comes at its start.",
    inputs=_FLOW_INPUTS,
    outputs=(_MEL, Tensor("mel_final", "BOOL", (1,), "final, passed on")),
)

HIFT = Model(
    "hift",
    Scheduling.SEQUENCE,
    "Mel frames to PCM. Owns the phase of the source and the context of its receptive field, speaking rate and "
    "resampler.",
    inputs=(
        _MEL,
        Tensor("mel_final", "BOOL", (1,), "true: no frame of this segment follows"),
        _DEADLINE,
        _STREAM,
        _SEED,
        *_HIFT_INPUTS,
    ),
    outputs=(_AUDIO,),
)

TOKEN2WAV = Model(
    "token2wav",
    Scheduling.ENSEMBLE,
    "flow, then hift, one call a chunk.",
    inputs=(*_FLOW_INPUTS, *_HIFT_INPUTS),
    outputs=(_AUDIO,),
    steps=(
        EnsembleStep(
            "flow",
            inputs=tuple((t.name, t.name) for t in _FLOW_INPUTS),
            outputs=(("mel", "mel"), ("mel_final", "mel_final")),
        ),
        EnsembleStep(
            "hift",
            inputs=tuple((t.name, t.name) for t in HIFT.inputs),
            outputs=(("audio", "audio"),),
        ),
    ),
)

MODELS = (TTS, *UPSTREAM, VOICES, FRONTEND, LLM, FLOW, HIFT, TOKEN2WAV)
"""All models, entry first."""
