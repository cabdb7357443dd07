"""The velocity field of CosyVoice 1: a U-Net that halves time, over one whole window.

Source of the algorithm: upstream flow/decoder.py :: ConditionalDecoder; guidance and speaker projection as in
`cosyserve.networks.unet`. Parameter names are the keys of ``flow.pt``.

Nothing here is causal: attention sees the whole window, convolutions look both ways and the group norms take their
statistics over time. So there is no state to keep, and windows of different lengths cannot share a call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosyserve.config import WindowFlowConfig
from cosyserve.networks.guided import Guided, mish
from cosyserve.networks.unet_layers import Stage, Surroundings, TimeMlp, joined

_GROUPS = 8  # of the norms, a constant upstream


class WindowFlow(Guided):
    """The velocity with classifier-free guidance. Shapes: B streams, n frames."""

    def __init__(self, config: WindowFlowConfig) -> None:
        super().__init__(config, WindowUNet(config))

    def forward(self, x: Tensor, mu: Tensor, cond: Tensor, embedding: Tensor, t: Tensor) -> Tensor:
        """One Euler step's velocity [B, mels, n].

        Args:
            x: state, float [B, mels, n].
            mu: encoder output, float [B, mels, n].
            cond: prompt mel where known, else zero, float [B, mels, n].
            embedding: speaker embedding as the speaker model gives it, float [B, speaker].
            t: flow time in [0, 1], float [B].
        """
        return self.velocity(x, mu, cond, embedding, t)


class WindowUNet(nn.Module):
    """The velocity of R independent rows (no guidance)."""

    def __init__(self, config: WindowFlowConfig) -> None:
        super().__init__()
        inputs, widths = 4 * config.mels, config.channels
        time = 4 * widths[0]
        last = len(widths) - 1
        self.time_mlp = TimeMlp(inputs, time)
        self.down_blocks = nn.ModuleList(
            _stage(config, before, width, time, _Down(width) if level < last else _conv(width, width))
            for level, (before, width) in enumerate(zip((inputs, *widths), widths, strict=False))
        )
        self.mid_blocks = nn.ModuleList(_stage(config, widths[-1], widths[-1], time) for _ in range(config.mid_blocks))
        back = widths[::-1]
        self.up_blocks = nn.ModuleList(
            _stage(config, 2 * width, after, time, _Up(after) if level < last else _conv(after, after))
            for level, (width, after) in enumerate(zip(back, (*back[1:], widths[0]), strict=True))
        )
        self.final_block = _Block(widths[0], widths[0])
        self.final_proj = nn.Conv1d(widths[0], config.mels, 1)

    def forward(self, x: Tensor, mu: Tensor, t: Tensor, speaker: Tensor, cond: Tensor) -> Tensor:
        """As `WindowFlow.forward` on R plain rows, with the projected ``speaker``, float [R, mels]."""
        time = self.time_mlp(t)
        h = joined(x, mu, speaker, cond)
        window = _Window()
        skips: list[Tensor] = []
        for down in self.down_blocks:
            h, skip = down(h, time, window)
            skips.append(skip)
        for mid in self.mid_blocks:
            h, _ = mid(h, time, window)
        for up in self.up_blocks:
            skip = skips.pop()
            # Halving rounds up, so that doubling may give one frame too many.
            h, _ = up(torch.cat([h[:, :, : skip.shape[2]], skip], dim=1), time, window)
        v: Tensor = self.final_proj(self.final_block(h, window))
        return v


def _stage(config: WindowFlowConfig, inputs: int, width: int, time: int, conv: nn.Module | None = None) -> Stage:
    return Stage(_Block, config, inputs, width, time, conv)


class _Window:
    """See `Surroundings`: nothing lies around the window."""

    def convolve(self, conv: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = conv(x)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(_conv(inputs, width), nn.GroupNorm(_GROUPS, width))

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        conv, norm = self.block
        return mish(norm(around.convolve(conv, x)))


class _Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


def _conv(inputs: int, width: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, width, 3, padding=1)
