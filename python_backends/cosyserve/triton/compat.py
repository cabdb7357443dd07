"""The models `cosyvoice2` and `cosyvoice3`: `tts` under upstream's contract, for clients that already speak it.

Each has a synthesizer of its own on the same inner models, and so a bound on its own streams; the flow's bound on
memory holds for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosyserve.compat import renamed, tts_request, waveform
from cosyserve.contracts import COSYVOICE2, COSYVOICE3, Tensors
from cosyserve.errors import CosyServeError, Unsupported
from cosyserve.pipeline.timeline import Chunk
from cosyserve.triton.adapter import ErrorReply, read_inputs, read_settings
from cosyserve.triton.telemetry import UtteranceTelemetry
from cosyserve.triton.tts import Tts
from cosyserve.triton_defects import outlast
from cosyserve.weights import Weights


class CompatModel(Tts):
    """Streams waveforms; the end is a response with flags only. Only the model of the weights' version serves."""

    version: int

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        self._found = Weights(read_settings(args).folder).config.version
        if self._found == self.version:
            super().initialize(args)

    async def execute(self, requests: list[Any]) -> None:
        """Answer each request; Triton runs many of these calls at once."""
        if self._found == self.version:
            await super().execute(requests)
            return
        error = Unsupported(f"{self.model.name} cannot serve: the weights are of CosyVoice {self._found}")
        await outlast([ErrorReply(request).send(request.get_response_sender(), error) for request in requests])

    async def _speak(self, sender: Any, inputs: Tensors, utterance: UtteranceTelemetry) -> None:
        try:
            await super()._speak(sender, inputs, utterance)
        except CosyServeError as error:
            raise renamed(error) from None

    def _inputs(self, request: Any) -> Tensors:
        return tts_request(read_inputs(request, self.model))

    def _outputs(self, chunk: Chunk) -> Tensors:
        return {} if chunk.final else {"waveform": waveform(chunk.audio)}


class CosyVoice2(CompatModel):
    """Version 2."""

    model, version = COSYVOICE2, 2


class CosyVoice3(CompatModel):
    """Version 3."""

    model, version = COSYVOICE3, 3
