"""The sizes and constants of a CosyVoice2 model, as plain data.

``bundle.read`` fills these from the YAML and the Qwen2 ``config.json`` of a bundle; ``prepare`` writes them to
``manifest.json``; the server reads them back from there. No torch and no YAML are needed to use them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LlmConfig:
    """Qwen2 decoder with speech embeddings and head (upstream llm/llm.py :: Qwen2LM)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rms_eps: float
    vocab: int  # rows of the text embedding
    speech_tokens: int  # ordinary speech ids are 0..speech_tokens-1; the end id is speech_tokens
    mix_ratio: tuple[int, int]  # text : speech tokens of a block in text-in streaming
    top_p: float
    top_k: int
    win_size: int
    tau_r: float

    @property
    def speech_vocab(self) -> int:
        """Rows of speech embedding and head: ordinary ids, end, a spare one, fill."""
        return self.speech_tokens + 3

    @property
    def end(self) -> int:
        """The id that ends a sequence."""
        return self.speech_tokens

    @property
    def fill(self) -> int:
        """The id that asks for the next block of text in text-in streaming."""
        return self.speech_tokens + 2


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """Speech tokens to mel (upstream flow/flow.py :: CausalMaskedDiffWithXvec)."""

    tokens: int  # rows of the token embedding
    width: int  # encoder channels
    heads: int  # encoder attention heads
    feed_forward: int  # encoder feed-forward channels
    blocks: int  # encoder layers before up-sampling
    up_blocks: int  # encoder layers after up-sampling
    chunk: int  # encoder chunk in tokens
    lookahead: int  # tokens the encoder looks to the right
    ratio: int  # mel frames per token
    mels: int
    speaker: int  # channels of the speaker embedding
    channels: int  # U-Net channels
    unet_heads: int
    unet_head_dim: int
    unet_blocks: int  # transformer blocks behind each resnet
    mid_blocks: int
    unet_chunk: int  # U-Net chunk in mel frames
    cfg_rate: float  # classifier-free guidance: v = (1 + rate) cond - rate uncond
    steps: int = 10  # Euler steps, a constant upstream

    @property
    def attentions(self) -> int:
        """Attention layers of the U-Net, in order down, mid, up."""
        return self.unet_blocks * (2 + self.mid_blocks)


@dataclass(frozen=True, slots=True)
class HiftConfig:
    """Mel to waveform (upstream hifigan/generator.py :: HiFTGenerator)."""

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
    llm: LlmConfig
    flow: FlowConfig
    hift: HiftConfig
    mel: MelConfig

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; ``TypeError`` names a missing or unknown key."""
        parts = {"llm": LlmConfig, "flow": FlowConfig, "hift": HiftConfig, "mel": MelConfig}
        return cls(**{key: _build(parts[key], value) if key in parts else value for key, value in data.items()})


def _build(cls: type[T], data: dict[str, Any]) -> T:
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise TypeError(f"{cls.__name__}: unknown keys {', '.join(unknown)}")
    return cls(**{key: _frozen(value) for key, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
