"""The model `tts`: the entry. Async, decoupled; it never computes, so one instance runs every stream."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import numpy as np

from cosyserve.contracts import TTS, Tensors
from cosyserve.errors import Cancelled, Overloaded
from cosyserve.load import load_grid
from cosyserve.metrics import ACTIVE_STREAMS, AUDIO_SAMPLES, CANCELLED, REFUSED
from cosyserve.pipeline.admission import Admission
from cosyserve.pipeline.orchestrate import Synthesizer
from cosyserve.pipeline.timeline import Chunk
from cosyserve.triton.adapter import FINAL, Instrument, final_failure, read_inputs, read_settings, response
from cosyserve.triton.bls import BlsStages

POLL_SECONDS = 0.05
"""How often a stream looks whether its client is still there: Triton has no event for it."""


class Tts:
    """Streams the audio of each request."""

    model = TTS

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        settings = read_settings(args)
        self._admission = Admission(settings.max_streams)
        self._synthesizer = Synthesizer(BlsStages(), load_grid(settings), self._admission)
        # BLS calls wait in asyncio's default pool, which is far too small for many streams.
        self._pool = ThreadPoolExecutor(4 * settings.max_streams, thread_name_prefix="bls")
        self._active = Instrument(ACTIVE_STREAMS, model=self.model.name)
        self._samples = Instrument(AUDIO_SAMPLES, model=self.model.name)
        self._cancelled = Instrument(CANCELLED, model=self.model.name)
        self._refused = Instrument(REFUSED, model=self.model.name)

    async def execute(self, requests: list[Any]) -> None:
        """Answer each request; Triton runs many of these calls at once."""
        asyncio.get_running_loop().set_default_executor(self._pool)
        await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        speech = asyncio.create_task(self._speak(request, sender))
        watch = asyncio.create_task(_cancel_when_gone(sender, speech))
        last: Any = None
        try:
            await speech
        except asyncio.CancelledError:
            self._cancelled.add(1)
            last = final_failure(Cancelled("the client closed the stream"))
        except Exception as error:
            self._refused.add(isinstance(error, Overloaded))
            last = final_failure(error)
        finally:
            watch.cancel()
            self._active.set(self._admission.active)
            if last is not None:
                sender.send(last, flags=FINAL)
            else:
                sender.send(flags=FINAL)

    async def _speak(self, request: Any, sender: Any) -> None:
        async with aclosing(self._synthesizer.speak(self._inputs(request))) as chunks:
            async for chunk in chunks:
                self._active.set(self._admission.active)
                self._samples.add(len(chunk.audio))
                if outputs := self._outputs(chunk):
                    sender.send(response(outputs, self.model))

    def _inputs(self, request: Any) -> Tensors:
        """What a request gives, as contract `TTS` has it."""
        return read_inputs(request, TTS)

    def _outputs(self, chunk: Chunk) -> Tensors:
        """What a chunk is answered with; nothing for no response."""
        words: Tensors = {}
        if chunk.words:
            words["words"] = np.asarray([word.text.encode() for word in chunk.words], np.object_)
            words["word_starts"] = np.asarray([word.start for word in chunk.words])
        return {
            **words,
            "audio": chunk.audio,
            "sample_offset": np.asarray([chunk.sample_offset]),
            "token_offset": np.asarray([chunk.token_offset]),
            "token_count": np.asarray([chunk.token_count]),
            "segment": np.asarray([chunk.segment]),
            "final": np.asarray([chunk.final]),
        }


async def _cancel_when_gone(sender: Any, speech: asyncio.Task[None]) -> None:
    while not sender.is_cancelled():  # noqa: ASYNC110 - there is nothing to wait on
        await asyncio.sleep(POLL_SECONDS)
    speech.cancel()
