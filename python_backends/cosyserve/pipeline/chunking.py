"""When to turn speech tokens into audio: small chunks first, then larger ones, on the model's chunk grid."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Tokens ``start:stop`` of a segment, to synthesise in one call; `final` when none follow."""

    start: int
    stop: int
    final: bool


@dataclass
class ChunkPlan:
    """The pieces of one segment. Every segment has its own plan.

    A piece reaches to a boundary plus the look-ahead that the boundary's last tokens need. Boundaries lie on the chunk
    grid counted from the first prompt token, because only whole chunks are final. The first piece holds at least
    `first_hop` new tokens; the next hop is a chunk or again as much, so that it is there before the first has been
    heard, and each later one is twice as long, up to `max_hop`
    (upstream cli/model.py :: CosyVoice2Model, whose hop grows on a shared object and is never reset).

    Attributes:
        prompt: prompt speech tokens.
        chunk: tokens of one model chunk.
        lookahead: tokens that must be known beyond a boundary.
        first_hop: fewest new tokens before the first boundary.
        max_hop: longest hop.
    """

    prompt: int
    chunk: int
    lookahead: int
    first_hop: int = 25
    max_hop: int = 100

    def __post_init__(self) -> None:
        self._hop = self.first_hop
        self._next_hop = max(self.chunk, self.first_hop)
        self._boundary = 0
        self._sent = 0

    def next(self, available: int, ended: bool) -> TokenSpan | None:
        """The next piece, or None when more tokens are needed.

        Args:
            available: speech tokens of this segment generated so far.
            ended: no token follows.
        """
        grid = self.prompt + self._boundary + self._hop
        boundary = -(-grid // self.chunk) * self.chunk - self.prompt
        stop = boundary + self.lookahead
        if available < stop:
            return self._piece(available, True) if ended else None
        self._boundary = boundary
        self._hop = min(self._next_hop, self.max_hop)
        self._next_hop = 2 * self._hop
        return self._piece(stop, False)

    def _piece(self, stop: int, final: bool) -> TokenSpan:
        start, self._sent = self._sent, stop
        return TokenSpan(start, stop, final)
