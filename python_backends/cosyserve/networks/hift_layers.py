"""The vocoder's convolutions in both kinds: looking to both sides, and looking back.

Source of the algorithm: upstream hifigan/generator.py and, for the causal kind, transformer/convolution.py ::
CausalConv1d, CausalConv1dUpsample, CausalConv1dDownSample. Both kinds give equal lengths.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import HiftConfig


class Layers(Protocol):
    """Makes the layers of one kind. Channels go in and out; the kernel's size is `kernel`."""

    def first(self, inputs: int, outputs: int) -> nn.Module:
        """What reads the mel."""
        ...

    def conv(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Module:
        """A plain convolution."""
        ...

    def up(self, inputs: int, outputs: int, kernel: int, rate: int) -> nn.Module:
        """One that makes the signal `rate` times as long."""
        ...

    def down(self, inputs: int, outputs: int, rate: int) -> nn.Module:
        """One that makes the source's spectrum `rate` times as short."""
        ...


class Symmetric:
    """Looks as far ahead as back."""

    def first(self, inputs: int, outputs: int) -> nn.Module:
        """See `Layers`."""
        return self.conv(inputs, outputs, 7)

    def conv(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Module:
        """See `Layers`."""
        return nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)

    def up(self, inputs: int, outputs: int, kernel: int, rate: int) -> nn.Module:
        """See `Layers`."""
        return nn.ConvTranspose1d(inputs, outputs, kernel, rate, padding=(kernel - rate) // 2)

    def down(self, inputs: int, outputs: int, rate: int) -> nn.Module:
        """See `Layers`."""
        if rate == 1:
            return nn.Conv1d(inputs, outputs, 1)
        return nn.Conv1d(inputs, outputs, 2 * rate, rate, padding=rate // 2)


class Causal:
    """Looks back, but for the first layer, which looks `ahead` frames ahead alone."""

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead

    def first(self, inputs: int, outputs: int) -> nn.Module:
        """See `Layers`."""
        return PaddedConv(inputs, outputs, self._ahead + 1, padded=(0, self._ahead))

    def conv(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Module:
        """See `Layers`."""
        return PaddedConv(inputs, outputs, kernel, dilation=dilation, padded=((kernel - 1) * dilation, 0))

    def up(self, inputs: int, outputs: int, kernel: int, rate: int) -> nn.Module:
        """See `Layers`."""
        return PaddedConv(inputs, outputs, kernel, repeats=rate, padded=(kernel - 1, 0))

    def down(self, inputs: int, outputs: int, rate: int) -> nn.Module:
        """See `Layers`."""
        if rate == 1:
            return nn.Conv1d(inputs, outputs, 1)
        return PaddedConv(inputs, outputs, 2 * rate, stride=rate, padded=(rate - 1, 0))


def layers_of(config: HiftConfig) -> Layers:
    """The kind of a vocoder."""
    return Causal(config.first_padding[1]) if config.causal else Symmetric()


class PaddedConv(nn.Conv1d):
    """A convolution of a signal with each sample repeated, behind and before zeros: `padded` (left, right)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        padded: tuple[int, int],
        repeats: int = 1,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, dilation=dilation)
        self.padded, self.repeats = padded, repeats

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, N] to [B, outputs, N * repeats / stride]."""
        if self.repeats > 1:
            x = x.repeat_interleave(self.repeats, dim=2)
        return super().forward(F.pad(x, self.padded))
