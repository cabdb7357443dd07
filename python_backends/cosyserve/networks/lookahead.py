"""Speech tokens to mu without a transformer: an embedding and two convolutions, one chunk at a time.

Source of the algorithm: upstream transformer/upsample_encoder.py :: PreLookaheadLayer and the first half of
flow/flow.py :: CausalMaskedDiffWithDiT.inference. Parameter names are the keys of ``flow.pt``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import DitFlowConfig

TAIL = 2  # left padding of the second convolution (kernel 3)


class LookaheadEncoder(nn.Module):
    """Encode n more tokens into n * ratio frames of mu.

    Shapes: B streams, n new tokens, L lookahead, C channels between the convolutions.
    """

    def __init__(self, config: DitFlowConfig) -> None:
        super().__init__()
        self.ratio = config.ratio
        self.input_embedding = nn.Embedding(config.tokens, config.mels)
        self.pre_lookahead_layer = PreLookahead(config.mels, config.lookahead_channels, config.lookahead)

    def forward(
        self,
        tokens: Tensor,
        context: Tensor,
        context_valid: Tensor,
        conv_tail: Tensor,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode one chunk.

        Args:
            tokens: int64 [B, n]; negative ids read row 0.
            context: the L tokens after the chunk, int64 [B, L].
            context_valid: 1.0 where that token exists, 0.0 past the end of the text, float [B, L].
            conv_tail: last inputs of the second convolution, float [B, C, 2]; zeros at the start.
            valid: see `FlowEncoder.forward`.

        Returns:
            mu [B, mels, ratio * n], each token's frame ratio times, and the tail for the next call.
        """
        x = self.input_embedding(tokens.clamp(min=0))
        ahead = self.input_embedding(context.clamp(min=0)) * context_valid[:, :, None]
        if valid is not None:
            x = without_padding(x, valid)
        x, conv_tail = self.pre_lookahead_layer(x, ahead, conv_tail)
        return x.repeat_interleave(self.ratio, dim=1).mT, conv_tail


def without_padding(x: Tensor, valid: Tensor) -> Tensor:
    """x [B, n, channels] with zeros, as behind the end of a text, in place of what follows the first `valid` [B]."""
    there = torch.arange(x.shape[1], device=x.device) < valid[:, None]
    return x * there[:, :, None].to(x.dtype)


class PreLookahead(nn.Module):
    """A convolution that looks ahead and one that looks back, beside the input itself.

    Args:
        width: channels in and out.
        inner: channels between the two.
        lookahead: positions that the first one looks ahead.
    """

    def __init__(self, width: int, inner: int, lookahead: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, inner, lookahead + 1)
        self.conv2 = nn.Conv1d(inner, width, TAIL + 1)

    def forward(self, x: Tensor, ahead: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, n, width], what follows it [B, lookahead, width] and tail [B, inner, 2] to [B, n, width] and tail."""
        h = F.leaky_relu(self.conv1(torch.cat([x, ahead], dim=1).mT))
        h = torch.cat([tail, h], dim=2)
        return x + self.conv2(h).mT, h[:, :, -TAIL:]
