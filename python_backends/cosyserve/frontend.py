"""A request, checked and turned into what the models take (upstream cli/frontend.py :: CosyVoiceFrontEnd)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cosyserve import limits, versions
from cosyserve.audio.features import fbank, log_mel_128, prompt_mel, resample, subtract_mean
from cosyserve.audio.output_format import check_output_format
from cosyserve.audio.prompt_audio import check_prompt, check_source, cut_at_pauses
from cosyserve.config import ModelConfig
from cosyserve.contracts import MODES
from cosyserve.errors import InvalidInput, Unsupported
from cosyserve.lazy import resolve
from cosyserve.text.incremental import ends_sentence, leading_stop, words
from cosyserve.text.normalize import Expand, contains_chinese, expand_numbers, is_silent, normalize
from cosyserve.text.prompts import Prompts
from cosyserve.text.special_tokens import END_OF_INSTRUCTION, END_OF_PROMPT
from cosyserve.text.split import SHORT, cut, segments
from cosyserve.text.tokenizer import Tokenizer
from cosyserve.voices import Voice

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

SpeakerModel = Callable[[Float32], NDArray[Any]]
"""CAMPPlus: mean-free energies [1, T, 80] -> speaker embedding [1, 192]."""

SpeechTokenizer = Callable[[Float32, Int32], NDArray[Any]]
"""Speech tokenizer: log-mel [1, 128, T] and T as [1] -> speech tokens, any shape."""


class Voices(Protocol):
    """Where registered voices come from."""

    def default(self) -> str | None:
        """Name of the voice for requests that name none; None when there is no voice."""

    def get(self, name: str) -> Voice:
        """The voice; ``VoiceNotFound`` when there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Inputs of the ``frontend`` model (see `contracts.FRONTEND`); None where the request leaves one out."""

    text: str | None = None
    voice: str | None = None
    prompt_audio: NDArray[Any] | None = None
    prompt_sample_rate: int | None = None
    prompt_text: str | None = None
    instruct: str | None = None
    mode: str | None = None
    source_audio: NDArray[Any] | None = None
    source_sample_rate: int | None = None
    speed: float | None = None
    sample_rate: int | None = None
    continues: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class UtteranceFeatures:
    """What the models take for one request.

    Attributes:
        segments: token ids of each text segment, int32 [n].
        texts: those segments as they are spoken.
        speech: speech tokens of each segment of the source, int32 [n]: instead of text, in mode vc.
        prompt_text_tokens: token ids before the text, int32 [n]: transcript or instruction.
        llm_prompt_tokens: speech tokens before those the LLM makes, int32 [P] or [0].
        flow_prompt_tokens: speech tokens before those the flow speaks, int32 [P] or [0].
        prompt_mel: their mel, float32 [2 P, 80] or [0, 80].
        speaker_embedding: float32 [192], not normalised.
        llm_speaker_embedding: the same for the LLM, or [0] where it takes none.
    """

    segments: list[Int32]
    texts: list[str]
    speech: list[Int32]
    prompt_text_tokens: Int32
    llm_prompt_tokens: Int32
    flow_prompt_tokens: Int32
    prompt_mel: Float32
    speaker_embedding: Float32
    llm_speaker_embedding: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))


class Frontend:
    """Turns requests into utterances. May be called from several threads.

    Args:
        config: the model.
        tokenizer: its text tokenizer.
        speaker_session: the speaker model.
        tokenizer_session: the speech tokenizer.
        voices: registered voices.
        normalizer: reads out numbers; ``str`` leaves that to the simpler rules.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        speaker_session: SpeakerModel,
        tokenizer_session: SpeechTokenizer,
        voices: Voices,
        normalizer: Expand = expand_numbers,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._speaker_session = speaker_session
        self._tokenizer_session = tokenizer_session
        self._voices = voices
        self._normalizer = normalizer
        self._version = versions.of(config)
        self._texts: Prompts = resolve(self._version.prompts)(tokenizer, self._normalized)
        self._prompts: OrderedDict[bytes, Voice] = OrderedDict()
        self._lock = Lock()
        # A segment of so many tokens, at the longest speech allowed and behind the longest prompt, fits the noise.
        frame_rate = config.sample_rate / config.hift.frame
        speech_tokens = (limits.MAX_NOISE_FRAMES / frame_rate - limits.MAX_PROMPT_SECONDS) * config.token_rate
        fitting = int(speech_tokens) // limits.MAX_TOKENS_PER_TEXT_TOKEN
        self._longest_segment = min(fitting, limits.MAX_SEGMENT_TEXT_TOKENS)

    def __call__(self, request: Request) -> UtteranceFeatures:
        """The model inputs of a request.

        Raises:
            InvalidInput: a field is wrong or missing; it is named.
            VoiceNotFound: no voice has the given name.
            Unsupported: text in pieces for a version that wants the whole text.
        """
        if request.continues is not None and not self._version.text_streaming:
            able = " or ".join(str(version.number) for version in versions.BUILT_IN if version.text_streaming)
            problem = f"needs CosyVoice {able}; CosyVoice {self._version.number} wants the whole text"
            raise Unsupported(f"sequence_start: text in pieces {problem}")
        if request.continues is not None and request.text is not None:
            return self._piece(request.text, request.continues)
        if request.mode is not None and request.mode not in MODES:
            raise InvalidInput("mode", f"must be one of {', '.join(MODES)}")
        check_output_format(request.speed, request.sample_rate, self._config.sample_rate)
        _check_source(request)
        if request.text is not None:
            _check_text("text", request.text, limits.MAX_TEXT_CHARS)
        _check_optional_text("prompt_text", request.prompt_text, limits.MAX_PROMPT_TEXT_CHARS)
        instruct = None if request.instruct is None else _without_end(request.instruct)
        _check_optional_text("instruct", instruct, limits.MAX_INSTRUCT_CHARS)
        instruction, said = self._texts.split(request.text or "")
        _check_instruction(instruction, instruct)
        texts = [] if request.text is None else self._segments(said)
        voice = self._voice(request)
        mode = request.mode or _infer_mode(request, voice)
        _check_mode(mode, request, voice)
        use = self._version.prompt_use
        prompted = mode in use.flow
        return UtteranceFeatures(
            segments=[np.array(self._tokenizer.encode_user(text), np.int32) for text in texts],
            texts=texts,
            speech=self._source(request),
            prompt_text_tokens=np.array(self._prompt_text(mode, instruct, voice, instruction), np.int32),
            llm_prompt_tokens=voice.llm_prompt_tokens if mode in use.llm_tokens else _NO_TOKENS,
            flow_prompt_tokens=voice.flow_prompt_tokens if prompted else _NO_TOKENS,
            prompt_mel=voice.prompt_mel if prompted else np.zeros((0, self._config.mel.mels), np.float32),
            speaker_embedding=voice.speaker_embedding,
            llm_speaker_embedding=voice.speaker_embedding if mode in use.llm_speaker else np.zeros(0, np.float32),
        )

    def voice_features(self, request: Request) -> UtteranceFeatures:
        """The voice of a request's prompt, and nothing to say: for registration.

        Raises:
            InvalidInput: the prompt is missing or wrong.
        """
        if request.prompt_audio is None:
            raise InvalidInput("prompt_audio", "is required")
        _check_optional_text("prompt_text", request.prompt_text, limits.MAX_PROMPT_TEXT_CHARS)
        voice = self._voice(request)
        return UtteranceFeatures(
            segments=[],
            texts=[],
            speech=[],
            prompt_text_tokens=_NO_TOKENS,
            llm_prompt_tokens=voice.llm_prompt_tokens,
            flow_prompt_tokens=voice.flow_prompt_tokens,
            prompt_mel=voice.prompt_mel,
            speaker_embedding=voice.speaker_embedding,
        )

    def voice_of(self, samples: NDArray[Any], rate: int, *, name: str = "", prompt_text: str = "") -> Voice:
        """The voice in some prompt audio.

        Args:
            samples: [n] float samples in -1..1.
            rate: Hz.
            name: what to call it, for `VoiceStore.save`.
            prompt_text: its transcript.

        Raises:
            InvalidInput: the audio cannot be used.
        """
        check_prompt(samples, rate)
        voice = self._cached_voice(np.ascontiguousarray(samples, np.float32), rate)
        return Voice(
            name=name,
            prompt_text=prompt_text,
            speaker_embedding=voice.speaker_embedding,
            llm_prompt_tokens=voice.llm_prompt_tokens,
            flow_prompt_tokens=voice.flow_prompt_tokens,
            prompt_mel=voice.prompt_mel,
        )

    def _source(self, request: Request) -> list[Int32]:
        """Speech tokens of the source, a piece at a time: the speech tokenizer takes 30 s, and pauses hide a seam.

        (Upstream's cli/frontend.py :: frontend_vc refuses longer sources; up to there the tokens are the same.)
        """
        if request.source_audio is None or request.source_sample_rate is None:
            return []
        check_source(request.source_audio, request.source_sample_rate)
        wave = resample(np.ascontiguousarray(request.source_audio, np.float32), request.source_sample_rate, 16_000)
        token = 16_000 // self._config.token_rate
        pieces = cut_at_pauses(wave, token, round(limits.MAX_SOURCE_SEGMENT_SECONDS * 16_000))
        # A rest of less than a window of the log-mel has nothing to hear.
        return [self._speech_tokens(piece) for piece in pieces if len(piece) >= token]

    def _piece(self, text: str, held: int) -> UtteranceFeatures:
        """Complete words of a text of which more follows, in segments of which the first holds `held` ids already.

        A segment ends with the sentence in which it outgrows `SHORT`. Numbers are read word by word, because what
        follows is not known (upstream does not read them at all in this mode).
        """
        # The word that was held back comes first.
        _check_text("text", text, limits.MAX_TEXT_CHARS + limits.MAX_WORD_CHARS)
        if not 0 <= held <= self._longest_segment:
            raise InvalidInput("continues", f"must be 0 to {self._longest_segment}, not {held}")
        if self._texts.split(text)[0]:
            raise InvalidInput("text", "cannot bring an instruction in pieces; give it as instruct")
        parts: list[list[int]] = [[]]
        texts = [""]

        def take(word: str) -> None:
            nonlocal held
            if is_silent(word) and not held:
                return
            spoken = self._normalized(word)
            spaced = held > 0 and word.startswith(" ") and not contains_chinese(word)
            said = " " * spaced + spoken
            ids = self._tokenizer.encode_user(said)
            for start in range(0, len(ids), self._longest_segment):
                some = ids[start : start + self._longest_segment]
                if held + len(some) > self._longest_segment:
                    close()
                texts[-1] += said
                said = ""
                parts[-1] += some
                held += len(some)

        def close() -> None:
            nonlocal held
            parts.append([])
            texts.append("")
            held = 0

        for word in words(text):
            stop = leading_stop(word) if held > SHORT else ""
            if stop:
                take(stop)
                close()
            take(word[len(stop) :])
            if held > SHORT and ends_sentence(word):
                close()
        return UtteranceFeatures(
            segments=[np.array(part, np.int32) for part in parts],
            texts=texts,
            speech=[],
            prompt_text_tokens=_NO_TOKENS,
            llm_prompt_tokens=_NO_TOKENS,
            flow_prompt_tokens=_NO_TOKENS,
            prompt_mel=np.zeros((0, self._config.mel.mels), np.float32),
            speaker_embedding=np.zeros(0, np.float32),
        )

    def _segments(self, text: str) -> list[str]:
        def count(part: str) -> int:
            return len(self._tokenizer.encode_user(part))

        pieces = segments(self._normalized(text), count)
        parts = [part for piece in pieces for part in cut(piece, self._longest_segment, count) if not is_silent(part)]
        if not parts:
            raise InvalidInput("text", "holds nothing that can be spoken")
        return parts

    def _voice(self, request: Request) -> Voice:
        if request.prompt_audio is None:
            for name in ("prompt_sample_rate", "prompt_text"):
                if getattr(request, name) is not None:
                    raise InvalidInput(name, "needs prompt_audio")
            return self._voices.get(self._default_voice() if request.voice is None else request.voice)
        if request.voice is not None:
            raise InvalidInput("voice", "cannot be combined with prompt_audio; give one of them")
        if request.prompt_sample_rate is None:
            raise InvalidInput("prompt_sample_rate", "is missing; prompt_audio needs it")
        return self.voice_of(
            request.prompt_audio, request.prompt_sample_rate, prompt_text=(request.prompt_text or "").strip()
        )

    def _default_voice(self) -> str:
        name = self._voices.default()
        if name is None:
            raise InvalidInput("voice", "is missing and this server has no voice; give prompt_audio")
        return name

    def _prompt_text(self, mode: str, instruct: str | None, voice: Voice, instruction: str) -> list[int]:
        if instruct is not None:
            return self._texts.instruction(instruct)
        transcript: list[int] = []
        if mode == "zero_shot":
            stored: list[int] = voice.prompt_text_tokens.tolist()
            transcript = self._texts.transcript(voice.prompt_text) if voice.prompt_text else stored
        return self._texts.opened(transcript, instruction)

    def _normalized(self, text: str) -> str:
        return self._tokenizer.around_tags(text, lambda part: normalize(part, self._normalizer))

    def _cached_voice(self, samples: Float32, rate: int) -> Voice:
        """The features of checked prompt audio, from the cache if the same samples came lately."""
        key = hashlib.sha256(samples.data).digest() + rate.to_bytes(4, "little")
        with self._lock:
            if key in self._prompts:
                self._prompts.move_to_end(key)
                return self._prompts[key]
        voice = self._compute_voice(samples, rate)
        with self._lock:
            self._prompts[key] = voice
            if len(self._prompts) > limits.CACHED_PROMPTS:
                self._prompts.popitem(last=False)  # evict the least recently used
        return voice

    def _compute_voice(self, samples: Float32, rate: int) -> Voice:
        """Nameless voice of checked audio.

        The mel is made at the rate that its extractor is for. (Upstream's cli/frontend.py gives CosyVoice 1 a wave at
        24 kHz since its version 3, though that model's extractor, and training, are for 22.05 kHz.)
        """
        wave_16k = resample(samples, rate, 16_000)
        embedding = self._speaker_session(subtract_mean(fbank(wave_16k))[None])
        tokens = self._speech_tokens(wave_16k)
        mel = prompt_mel(resample(samples, rate, self._config.mel.sample_rate), self._config.mel)
        if ratio := self._config.flow.ratio:
            n = min(len(mel) // ratio, len(tokens))
            tokens, mel = tokens[:n], mel[: n * ratio]
        return Voice(
            name="",
            speaker_embedding=embedding.reshape(-1).astype(np.float32),
            llm_prompt_tokens=tokens,
            flow_prompt_tokens=tokens,
            prompt_mel=mel,
        )

    def _speech_tokens(self, wave_16k: Float32) -> Int32:
        log_mel = log_mel_128(wave_16k)
        tokens = self._tokenizer_session(log_mel[None], np.array([log_mel.shape[1]], np.int32))
        return tokens.reshape(-1).astype(np.int32)


_NO_TOKENS: Int32 = np.zeros(0, np.int32)


def _without_end(instruct: str) -> str:
    return instruct.strip().removesuffix(END_OF_PROMPT).removesuffix(END_OF_INSTRUCTION)


def _check_source(request: Request) -> None:
    """Either text or a source to convert, and what belongs to it."""
    if request.continues is not None and (request.mode == "vc" or request.source_audio is not None):
        raise InvalidInput("source_audio", "cannot be converted in a session, which speaks text")
    if request.source_audio is None:
        if request.mode == "vc":
            raise InvalidInput("source_audio", "is missing; mode vc needs it")
        if request.source_sample_rate is not None:
            raise InvalidInput("source_sample_rate", "needs source_audio")
        if request.text is None and request.continues is None:
            raise InvalidInput("text", "is required")
        return
    if request.mode not in (None, "vc"):
        raise InvalidInput("source_audio", f"has no meaning in mode {request.mode}")
    if request.text is not None:
        raise InvalidInput("text", "cannot be combined with source_audio; give one of them")
    if request.source_sample_rate is None:
        raise InvalidInput("source_sample_rate", "is missing; source_audio needs it")


def _check_instruction(instruction: str, instruct: str | None) -> None:
    """Judges the instruction that a text brings along."""
    if instruction and instruct is not None:
        raise InvalidInput("instruct", f"cannot be combined with a text that holds {END_OF_PROMPT}; give one of them")
    if len(instruction) > limits.MAX_INSTRUCT_CHARS:
        problem = f"has {len(instruction)} characters before {END_OF_PROMPT}"
        raise InvalidInput("text", f"{problem}, at most {limits.MAX_INSTRUCT_CHARS} are allowed")


def _check_text(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidInput(name, f"has {len(text)} characters, at most {most} are allowed")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidInput(name, "is not valid Unicode")


def _check_optional_text(name: str, text: str | None, most: int) -> None:
    if text is None:
        return
    _check_text(name, text, most)
    if is_silent(text):
        raise InvalidInput(name, "has no words; leave it out instead")


def _infer_mode(request: Request, voice: Voice) -> str:
    if request.source_audio is not None:
        return "vc"
    if request.instruct is not None:
        return "instruct"
    if voice.has_prompt:
        return "zero_shot" if voice.has_transcript else "cross_lingual"
    return "sft"


def _check_mode(mode: str, request: Request, voice: Voice) -> None:
    """Refuses a mode that the request's other fields, or the voice, do not allow."""
    source = "voice" if request.prompt_audio is None else "prompt_audio"
    if mode == "instruct" and request.instruct is None:
        raise InvalidInput("instruct", "is missing; mode instruct needs it")
    if mode != "instruct" and request.instruct is not None:
        raise InvalidInput("instruct", f"has no meaning in mode {mode}")
    if mode == "sft" and source == "prompt_audio":
        raise InvalidInput("prompt_audio", "has no meaning in mode sft, which needs a registered voice")
    if mode in ("zero_shot", "cross_lingual") and not voice.has_prompt:
        raise InvalidInput(source, f"has no prompt speech, which mode {mode} needs; use mode sft")
    if mode == "zero_shot" and not voice.has_transcript:
        needed = "prompt_text" if source == "prompt_audio" else source
        raise InvalidInput(needed, "mode zero_shot needs the transcript of the prompt; without it use cross_lingual")
