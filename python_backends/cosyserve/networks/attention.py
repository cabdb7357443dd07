"""Self-attention of the estimators; the caller passes what is attended to.

Source of the algorithm: upstream flow/DiT/modules.py :: Attention, and flow/decoder.py, whose blocks attend alike.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Scaled queries, keys and values of the new positions [rows, heads, n, hd] -> mixed values, same shape."""


class Attention(nn.Module):
    """Attention on [rows, n, width]; parameter names are the keys of ``flow.pt``.

    Args:
        bias: whether queries, keys and values have one; the projection behind them has it always.
    """

    def __init__(self, width: int, heads: int, head_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        inner = heads * head_dim
        self.to_q = nn.Linear(width, inner, bias=bias)
        self.to_k = nn.Linear(width, inner, bias=bias)
        self.to_v = nn.Linear(width, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        rows, new, _ = x.shape
        q, k, v = (by_heads(linear(x), self.heads, self.head_dim) for linear in (self.to_q, self.to_k, self.to_v))
        out = attend(q * self.head_dim**-0.5, k, v).transpose(1, 2)
        projected: Tensor = self.to_out[0](out.reshape(rows, new, self.heads * self.head_dim))
        return projected


def by_heads(x: Tensor, heads: int, head_dim: int) -> Tensor:
    """[B, n, heads * hd] by heads: [B, heads, n, hd]."""
    return x.view(x.shape[0], x.shape[1], heads, head_dim).transpose(1, 2)
