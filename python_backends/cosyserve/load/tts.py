"""What the orchestrator needs to know, and where its spans go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cosyserve.errors import WeightsError
from cosyserve.pipeline.synthesizer import ChunkGrid
from cosyserve.settings import Settings
from cosyserve.weights import Weights

if TYPE_CHECKING:
    from cosyserve.traces import Traces


def load_chunk_grid(settings: Settings) -> ChunkGrid:
    """Chunk geometry and policy."""
    config = Weights(settings.folder).config
    flow = config.flow
    return ChunkGrid(
        flow.chunk,
        flow.lookahead,
        config.sample_rate // config.token_rate,
        config.sample_rate,
        first_hop=flow.fixed_hop or settings.first_hop,
        max_hop=flow.fixed_hop or settings.max_hop,
    )


def load_traces(settings: Settings) -> Traces | None:
    """Where spans go, if they do.

    Raises:
        WeightsError: OpenTelemetry is not installed.
    """
    if not settings.otlp_endpoint:
        return None
    try:
        from cosyserve.traces import Traces  # an extra
    except ModuleNotFoundError:
        raise WeightsError("setting otlp_endpoint: needs `pip install 'cosyserve[tracing]'`") from None
    return Traces(settings.otlp_endpoint)
