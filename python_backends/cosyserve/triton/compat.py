"""The models of `contracts.UPSTREAM`: `tts` under upstream's contract, for clients that already speak it.

Each has a synthesizer of its own on the same inner models, and so a bound on its own streams; the flow's bound on
memory holds for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosyserve.compat import renamed, tts_request, waveform
from cosyserve.contracts import UPSTREAM, Tensors
from cosyserve.errors import CosyServeError, Unsupported
from cosyserve.pipeline.timeline import Chunk
from cosyserve.triton.adapter import ErrorReply, read_inputs, read_settings
from cosyserve.triton.telemetry import UtteranceTelemetry
from cosyserve.triton.tts import Tts
from cosyserve.triton_defects import outlast
from cosyserve.weights import Weights


class CompatModel(Tts):
    """Streams waveforms; the end is a response with flags only. Only the model of the weights' version serves.

    `cosyserve serve` leaves the others out of its repository; a plain one has all of them.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        (self.model,) = (model for model in UPSTREAM if model.name == args["model_name"])
        self._found = Weights(read_settings(args).folder).version
        if self._found.upstream == self.model.name:
            super().initialize(args)

    async def execute(self, requests: list[Any]) -> None:
        """Answer each request; Triton runs many of these calls at once."""
        if self._found.upstream == self.model.name:
            await super().execute(requests)
            return
        error = Unsupported(f"{self.model.name} cannot serve: the weights are of CosyVoice {self._found.number}")
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
