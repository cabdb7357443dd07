"""Mel to pitch, and mel with source signal to waveform.

Source of the algorithm: upstream hifigan/f0_predictor.py :: ConvRNNF0Predictor, hifigan/generator.py :: HiFTGenerator,
ResBlock, the causal classes beside them, and transformer/activation.py :: Snake. Parameter names are the keys of
``hift.pt`` with weight norm folded.
"""

from __future__ import annotations

import itertools
import math
import operator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import HiftConfig
from cosyserve.networks.hift_layers import Layers, layers_of

_MAX_LOG_MAGNITUDE = math.log(100.0)  # upstream clips the spectrum here before the inverse STFT


class F0Predictor(nn.Module):
    """Pitch of each mel frame; W frames in, W out, each seeing `HiftConfig.f0_reach` frames back and ahead.

    Computed in float64: phases add up pitch, and in float32 the rounding of differently cut windows would add up too
    and break ``chunked == one-shot``.
    """

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.f0_predictor = _PitchNet(config)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel float [B, mels, W] to f0 in Hz, float64 [B, W]."""
        f0: Tensor = self.f0_predictor(mel)
        return f0


class Decoder(nn.Module):
    """The vocoder network behind the source signal."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        stages = len(config.up_rates)
        widths = [config.channels >> (i + 1) for i in range(stages)]
        inputs = [config.channels, *widths[:-1]]
        spectrum = config.n_fft + 2
        self.slope, self.limit, self.bins = config.slope, config.limit, spectrum // 2
        self.resblocks_per_stage = len(config.res_kernels)

        layers = layers_of(config)
        self.conv_pre = layers.first(config.mels, config.channels)
        self.ups = nn.ModuleList(
            layers.up(cin, cout, k, u)
            for cin, cout, u, k in zip(inputs, widths, config.up_rates, config.up_kernels, strict=True)
        )
        self.source_downs = nn.ModuleList(
            layers.down(spectrum, cout, u) for cout, u in zip(widths, _later_rates(config.up_rates), strict=True)
        )
        self.source_resblocks = nn.ModuleList(
            _ResBlock(layers, width, k, d)
            for width, k, d in zip(widths, config.source_kernels, config.source_dilations, strict=True)
        )
        self.resblocks = nn.ModuleList(
            _ResBlock(layers, width, k, d)
            for width in widths
            for k, d in zip(config.res_kernels, config.res_dilations, strict=True)
        )
        self.conv_post = layers.conv(widths[-1], spectrum, 7)
        self.stft = _Stft(config.n_fft, config.hop)

    def forward(self, mel: Tensor, source: Tensor) -> Tensor:
        """Log-mel float [B, mels, W] and source float [B, 1, frame * W] to audio float [B, frame * W]."""
        spectrum = self.stft.analyse(source)
        x = self.conv_pre(mel)
        last = len(self.ups) - 1
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, self.slope))
            if i == last:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[i](self.source_downs[i](spectrum))
            first = i * self.resblocks_per_stage
            branches = [block(x) for block in self.resblocks[first : first + self.resblocks_per_stage]]
            x = sum(branches[1:], start=branches[0]) / len(branches)
        # Upstream leaves the slope here at PyTorch's default (0.01), unlike above.
        x = self.conv_post(F.leaky_relu(x))
        # Clipped before the exponential, which would overflow and leave training nothing but NaN.
        magnitude = x[:, : self.bins].clamp(max=_MAX_LOG_MAGNITUDE).exp()
        phase = x[:, self.bins :].sin()
        audio = self.stft.synthesise(magnitude * phase.cos(), magnitude * phase.sin())
        return audio.clamp(-self.limit, self.limit)


class _PitchNet(nn.Module):
    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        channels, self.padded = config.f0_channels, config.f0_padding
        inputs = [config.mels, *[channels] * 4]
        kernels = [1 + sum(padding) for padding in self.padded]
        convs = [[nn.Conv1d(cin, channels, k), nn.ELU()] for cin, k in zip(inputs, kernels, strict=True)]
        self.condnet = nn.Sequential(*itertools.chain.from_iterable(convs))
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        x = mel.double()
        for conv, padding in zip(list(self.condnet)[::2], self.padded, strict=True):
            x = _elu(_convolve(conv, F.pad(x, padding)))
        # Weight first: onnxruntime 1.31 multiplies a transposed float64 x wrongly.
        f0 = self.classifier.weight.double() @ x + self.classifier.bias.double()
        return f0.squeeze(1).abs()


def _convolve(conv: nn.Module, padded: Tensor) -> Tensor:
    """The convolution as one matrix product in float64, which onnxruntime has no convolution for."""
    weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
    _, _, kernel = weight.shape
    frames = padded.shape[2] - kernel + 1
    columns = torch.cat([padded[:, :, i : i + frames] for i in range(kernel)], dim=1)
    return weight.mT.flatten(1).double() @ columns + bias.double()[:, None]


def _elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x.clamp(max=0).exp() - 1)


class _ResBlock(nn.Module):
    def __init__(self, layers: Layers, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(layers.conv(channels, channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(layers.conv(channels, channels, kernel) for _ in dilations)
        self.activations1 = nn.ModuleList(_Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(_Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for snake1, conv1, snake2, conv2 in layers:
            x = x + conv2(snake2(conv1(snake1(x))))
        return x


class _Snake(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        sine = (alpha * x).sin()
        return x + sine * sine * (1.0 / (alpha + 1e-9))


class _Stft(nn.Module):
    """Centred STFT and inverse with a periodic Hann window, as convolutions with a DFT basis.

    ONNX has no inverse STFT and its STFT is complex. Same values as torch.stft and torch.istft.
    """

    forward_basis: Tensor
    inverse_basis: Tensor
    envelope: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.hop, self.reach = hop, n_fft // 2
        # On the CPU in float64 even when the module is built on another device: the values must not depend on it.
        steps = torch.arange(n_fft, device="cpu", dtype=torch.float64)
        window = torch.hann_window(n_fft, device="cpu", dtype=torch.float64)
        angles = 2 * torch.pi / n_fft * torch.outer(steps[: self.reach + 1], steps)
        basis = torch.cat([angles.cos(), -angles.sin()])
        # Bins 1..n/2-1 stand for their mirror images too; the imaginary parts of bins 0 and n/2 count for nothing.
        share = torch.full((self.reach + 1,), 2.0 / n_fft, device="cpu", dtype=torch.float64)
        share[0] = share[-1] = 1.0 / n_fft
        imaginary_share = share.clone()
        imaginary_share[0] = imaginary_share[-1] = 0.0
        inverse = basis * torch.cat([share, imaginary_share])[:, None]
        self.register_buffer("forward_basis", (basis * window).float()[:, None], persistent=False)
        self.register_buffer("inverse_basis", (inverse * window).float()[:, None], persistent=False)
        self.register_buffer("envelope", window.square().float()[None, None], persistent=False)

    def analyse(self, signal: Tensor) -> Tensor:
        """[B, 1, N] to real then imaginary parts [B, n_fft + 2, N // hop + 1]."""
        padded = F.pad(signal, (self.reach, self.reach), mode="reflect")
        return F.conv1d(padded, self.forward_basis, stride=self.hop)

    def synthesise(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Two [B, n_fft // 2 + 1, F] to [B, (F - 1) * hop]."""
        signal = F.conv_transpose1d(torch.cat([real, imaginary], dim=1), self.inverse_basis, stride=self.hop)
        weight = F.conv_transpose1d(torch.ones_like(real[:1, :1]), self.envelope, stride=self.hop)
        inner = slice(self.reach, -self.reach)
        return (signal[:, :, inner] / weight[:, :, inner]).squeeze(1)


def _later_rates(up_rates: tuple[int, ...]) -> list[int]:
    """For each stage the up-sampling that follows it: (8, 5, 3) gives [15, 3, 1]."""
    products = itertools.accumulate(reversed(up_rates[1:]), operator.mul, initial=1)
    return list(products)[::-1]
