"""The sizes and constants of a CosyVoice model, as plain data.

``bundles.bundle.read`` fills these from the YAML (and Qwen2's ``config.json``) of a bundle; ``prepare`` writes them to
``manifest.json``; the server reads them back from there. No torch and no YAML are needed to use them.

Each kind of network has a class of its own: what is read from a bundle are its fields, what is constant upstream are
class variables and properties. Which classes a version consists of says its description in `cosyserve.versions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

T = TypeVar("T")


class SpecialIds(NamedTuple):
    """Where the special ids of a language model lie: all are counted from the first id behind the ordinary ones.

    Rows open a sequence and stand between text and speech. They belong to the speech embedding or, counted on, to a
    table of its own behind it.
    """

    rows: int  # of speech embedding and head, behind those of the ordinary ids
    eos: int  # the id that the model was taught to end with; all ids behind the ordinary ones end a sequence too
    start_row: int
    task_row: int


class SpeechIds:
    """Speech ids of a language model: 0..speech_tokens-1 are ordinary, `special` says what follows."""

    __slots__ = ()

    speech_tokens: int
    special: ClassVar[SpecialIds]
    silent_tokens: ClassVar[frozenset[int]] = frozenset()
    """Ids that sound as silence, of which long runs are not spoken."""

    @property
    def speech_vocab(self) -> int:
        """Rows of the head, and of the speech embedding where its special ids can be fed."""
        return self.speech_tokens + self.special.rows

    @property
    def end(self) -> int:
        """The first id that ends a sequence; all above it do too."""
        return self.speech_tokens

    @property
    def eos(self) -> int:
        """Of these the one that the model was taught to end with."""
        return self.speech_tokens + self.special.eos

    @property
    def start_row(self) -> int:
        """What opens a sequence."""
        return self.speech_tokens + self.special.start_row

    @property
    def task_row(self) -> int:
        """What stands between text and speech."""
        return self.speech_tokens + self.special.task_row


@dataclass(frozen=True, slots=True)
class LlmConfig(SpeechIds):
    """Qwen2 decoder with speech embeddings and head, as CosyVoice2 has it (upstream llm/llm.py :: Qwen2LM)."""

    special = SpecialIds(rows=3, eos=0, start_row=3, task_row=4)
    fill_offset: ClassVar[int] = 2
    head_bias: ClassVar[bool] = True

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rms_eps: float
    vocab: int  # rows of the text embedding
    speech_tokens: int  # ordinary speech ids are 0..speech_tokens-1
    mix_ratio: tuple[int, int]  # text : speech tokens of a block in text-in streaming
    top_p: float
    top_k: int
    win_size: int
    tau_r: float

    @property
    def fill(self) -> int:
        """The id that asks for the next block of text in text-in streaming."""
        return self.speech_tokens + self.fill_offset

    def prefix(self, prompt_text: Sequence[int]) -> int:
        """How many ids of a prompt text stand outside the blocks of text-in streaming, right behind the start."""
        return 0


@dataclass(frozen=True, slots=True)
class CosyVoice3LlmConfig(LlmConfig):
    """The same decoder; special ids and rows share one table, and the head has no bias (upstream CosyVoice3LM).

    Most of the special ids are spare. The silent ones are a constant upstream (cli/model.py :: CosyVoice3Model).
    """

    special = SpecialIds(rows=200, eos=1, start_row=0, task_row=2)
    fill_offset = 3
    head_bias = False
    silent_tokens = frozenset({1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323})

    end_of_prompt: int  # text id that ends an instruction

    def prefix(self, prompt_text: Sequence[int]) -> int:
        """See `LlmConfig.prefix`: the instruction, if there is one."""
        return prompt_text.index(self.end_of_prompt) + 1 if self.end_of_prompt in prompt_text else 0


@dataclass(frozen=True, slots=True)
class TransformerConfig(SpeechIds):
    """Text encoder and decoder of CosyVoice 1 (upstream llm/llm.py :: TransformerLM); its end id has no embedding."""

    special = SpecialIds(rows=1, eos=0, start_row=1, task_row=2)

    inputs: int  # width of input embeddings
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocab: int  # rows of the text embedding
    text_inputs: int  # width of the text embedding
    text_hidden: int  # text encoder channels
    text_heads: int
    text_feed_forward: int
    text_blocks: int
    speaker: int  # channels of the speaker embedding
    speech_tokens: int  # ordinary speech ids are 0..speech_tokens-1; the end id is speech_tokens
    top_p: float
    top_k: int
    win_size: int
    tau_r: float

    @property
    def kv_heads(self) -> int:
        """Key and value heads: one for each query head."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden // self.heads


AnyLlm = LlmConfig | TransformerConfig
"""A language model that the engine runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowConfig:
    """Speech tokens to mel, whichever networks do it.

    Attributes:
        tokens: rows of the token embedding.
        chunk: tokens of one chunk in streaming.
        lookahead: tokens that a token looks to the right.
        ratio: mel frames per token.
        mels: channels of the mel.
        speaker: channels of the speaker embedding.
        cfg_rate: classifier-free guidance: v = (1 + rate) cond - rate uncond.
        steps: Euler steps, a constant upstream.
    """

    tokens: int
    chunk: int
    lookahead: int
    ratio: int
    mels: int
    speaker: int
    cfg_rate: float
    steps: int = 10

    fixed_noise: ClassVar[bool] = True
    """Whether every utterance starts from the same noise."""

    fixed_hop: ClassVar[int | None] = None
    """Tokens from one audio chunk to the next, where the model settles it."""

    @property
    def frame_chunk(self) -> int:
        """Mel frames of one chunk of the estimator."""
        raise NotImplementedError

    @property
    def positions(self) -> bool:
        """Whether the estimator takes the position of a chunk."""
        return False

    @property
    def attention(self) -> tuple[int, int, int]:
        """Layers, heads and channels of a head of the estimator's attention, whose past a stream keeps."""
        raise NotImplementedError

    @property
    def tails(self) -> list[tuple[int, int]]:
        """Channels and frames of the past that each causal convolution of the estimator needs, in execution order."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetFlowConfig(FlowConfig):
    """An up-sampling conformer, then a causal U-Net (upstream flow/flow.py :: CausalMaskedDiffWithXvec)."""

    width: int  # encoder channels
    heads: int  # encoder attention heads
    feed_forward: int  # encoder feed-forward channels
    blocks: int  # encoder layers before up-sampling
    up_blocks: int  # encoder layers after up-sampling
    channels: int  # U-Net channels
    unet_heads: int
    unet_head_dim: int
    unet_blocks: int  # transformer blocks behind each resnet
    mid_blocks: int
    unet_chunk: int  # U-Net chunk in mel frames

    @property
    def frame_chunk(self) -> int:
        """See `FlowConfig.frame_chunk`."""
        return self.unet_chunk

    @property
    def attentions(self) -> int:
        """Attention layers of the U-Net, in order down, mid, up."""
        return self.unet_blocks * (2 + self.mid_blocks)

    @property
    def attention(self) -> tuple[int, int, int]:
        """See `FlowConfig.attention`."""
        return self.attentions, self.unet_heads, self.unet_head_dim

    @property
    def tails(self) -> list[tuple[int, int]]:
        """See `FlowConfig.tails`; every kernel is 3."""
        inputs, width = 4 * self.mels, self.channels
        down, mid, up = [inputs, width, width], [width, width] * self.mid_blocks, [2 * width, width, width]
        return [(channels, 2) for channels in (*down, *mid, *up, width)]


# Constants upstream.
DIT_TIME = 256  # channels of the sinusoid of the flow time
DIT_GROUPS = 16  # of the convolutions that tell positions apart


@dataclass(frozen=True, slots=True, kw_only=True)
class DitFlowConfig(FlowConfig):
    """Two convolutions, then a diffusion transformer (upstream flow/flow.py :: CausalMaskedDiffWithDiT)."""

    lookahead_channels: int  # between the two convolutions
    dit_width: int
    dit_blocks: int
    dit_heads: int
    dit_head_dim: int
    dit_feed_forward: int
    dit_chunk: int  # in mel frames

    @property
    def frame_chunk(self) -> int:
        """See `FlowConfig.frame_chunk`."""
        return self.dit_chunk

    @property
    def positions(self) -> bool:
        """See `FlowConfig.positions`."""
        return True

    @property
    def attention(self) -> tuple[int, int, int]:
        """See `FlowConfig.attention`."""
        return self.dit_blocks, self.dit_heads, self.dit_head_dim

    @property
    def tails(self) -> list[tuple[int, int]]:
        """See `FlowConfig.tails`: of the two convolutions of kernel 31 that tell positions apart."""
        return [(self.dit_width, 30)] * 2


@dataclass(frozen=True, slots=True)
class WindowFlowConfig:
    """Speech tokens to mel, window by window (upstream flow/flow.py :: MaskedDiffWithXvec)."""

    tokens: int  # rows of the token embedding
    inputs: int  # its width
    width: int  # encoder channels
    heads: int  # encoder attention heads
    feed_forward: int  # encoder feed-forward channels
    blocks: int  # encoder layers
    regulator_convs: int  # convolutions behind the interpolation
    token_rate: int  # tokens per second
    frame_rate: float  # mel frames per second
    mels: int
    speaker: int  # channels of the speaker embedding
    channels: tuple[int, ...]  # U-Net channels of each level; each level but the last halves time
    unet_heads: int
    unet_head_dim: int
    unet_blocks: int  # transformer blocks behind each resnet
    mid_blocks: int
    cfg_rate: float  # classifier-free guidance: v = (1 + rate) cond - rate uncond
    hop: int = 100  # tokens from one window to the next; this and what follows are constants upstream
    overlap: int = 20  # tokens that two windows share
    steps: int = 10  # Euler steps

    fixed_noise: ClassVar[bool] = False
    ratio: ClassVar[None] = None
    """Mel frames per token: the encoder stretches tokens to however many frames there are."""

    chunk: ClassVar[int] = 1
    """See `FlowConfig.chunk`: a window may begin at any token."""

    @property
    def lookahead(self) -> int:
        """See `FlowConfig.lookahead`: what a window shares with the next."""
        return self.overlap

    @property
    def fixed_hop(self) -> int:
        """See `FlowConfig.fixed_hop`."""
        return self.hop

    def frames(self, tokens: int) -> int:
        """Mel frames that so many tokens last, as upstream rounds them."""
        return int(tokens / self.token_rate * self.frame_rate)


AnyFlow = FlowConfig | WindowFlowConfig
"""Speech tokens to mel, in chunks or in windows."""


@dataclass(frozen=True, slots=True)
class HiftConfig:
    """Mel to waveform (upstream hifigan/generator.py :: HiFTGenerator).

    Attributes:
        phase: how the phase of the harmonics runs within a frame: interpolated between frames, held, or from sample to
            sample.
        causal: whether only the first convolution looks ahead.
        fixed_noise: whether the source of every segment has the same noise.
        f0_padding: frames that each convolution of the pitch predictor sees back and ahead; constants upstream.
    """

    phase: ClassVar[Literal["interpolated", "held", "by sample"]] = "interpolated"
    causal: ClassVar[bool] = False
    fixed_noise: ClassVar[bool] = False
    f0_padding: ClassVar[tuple[tuple[int, int], ...]] = ((1, 1),) * 5

    mels: int
    channels: int  # channels after the first convolution
    harmonics: int  # overtones besides the fundamental
    sample_rate: int
    nsf_alpha: float  # amplitude of the sines
    nsf_sigma: float  # amplitude of the noise in voiced frames
    voiced_threshold: float  # Hz
    up_rates: tuple[int, ...]
    up_kernels: tuple[int, ...]
    n_fft: int
    hop: int  # of the inverse STFT
    res_kernels: tuple[int, ...]
    res_dilations: tuple[tuple[int, ...], ...]
    source_kernels: tuple[int, ...]
    source_dilations: tuple[tuple[int, ...], ...]
    slope: float  # of the leaky ReLUs before up-sampling
    limit: float  # output clamp
    f0_channels: int

    @property
    def frame(self) -> int:
        """Samples per mel frame."""
        samples = self.hop
        for rate in self.up_rates:
            samples *= rate
        return samples

    @property
    def f0_reach(self) -> tuple[int, int]:
        """Frames that the pitch predictor sees back and ahead."""
        return sum(left for left, _ in self.f0_padding), sum(right for _, right in self.f0_padding)

    @property
    def phase_ahead(self) -> int:
        """Frames ahead that the phase of a frame's harmonics leans on."""
        return int(self.phase == "interpolated")

    @property
    def first_padding(self) -> tuple[int, int]:
        """Mel frames that the decoder's first convolution sees back and ahead."""
        return 3, 3


@dataclass(frozen=True, slots=True)
class CausalHiftConfig(HiftConfig):
    """The vocoder that looks back but for a few frames (upstream hifigan/generator.py :: CausalHiFTGenerator)."""

    phase = "held"
    causal = True
    fixed_noise = True
    f0_padding = ((0, 3), *((2, 0),) * 4)

    look_right: int  # mel frames that the decoder's first convolution looks ahead

    @property
    def first_padding(self) -> tuple[int, int]:
        """See `HiftConfig.first_padding`."""
        return 0, self.look_right


@dataclass(frozen=True, slots=True)
class SampleHiftConfig(HiftConfig):
    """The vocoder whose sines run from sample to sample (upstream picks SineGen at 22,050 Hz)."""

    phase = "by sample"


@dataclass(frozen=True, slots=True)
class MelConfig:
    """The prompt mel (upstream matcha/utils/audio.py :: mel_spectrogram)."""

    n_fft: int
    hop: int
    window: int
    mels: int
    fmin: float
    fmax: float | None
    sample_rate: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One CosyVoice model."""

    version: int
    sample_rate: int
    token_rate: int  # speech tokens per second
    llm: AnyLlm
    flow: AnyFlow
    hift: HiftConfig
    mel: MelConfig

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], parts: Mapping[str, type]) -> ModelConfig:
        """Inverse of `to_dict`, with the classes of the parts (see `cosyserve.versions`).

        Raises:
            TypeError: a missing or unknown key; it is named.
        """
        return cls(**{key: _build(parts[key], value) if key in parts else value for key, value in data.items()})


def expect(kind: type[T], part: object) -> T:
    """A part as the kind that its user handles; ``TypeError`` where a version names a user of another kind."""
    if not isinstance(part, kind):
        raise TypeError(f"{type(part).__name__} is no {kind.__name__}")
    return part


def _build(cls: type[T], data: dict[str, Any]) -> T:
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise TypeError(f"{cls.__name__}: unknown keys {', '.join(unknown)}")
    return cls(**{key: _frozen(value) for key, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
