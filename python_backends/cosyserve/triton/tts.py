"""The model `tts`: the entry. Async, decoupled; it never computes, so one instance runs every stream."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosyserve.contracts import TTS, Tensors
from cosyserve.errors import Cancelled, CosyServeError, InvalidInput, LifetimeOver
from cosyserve.load.tts import load_chunk_grid, load_traces
from cosyserve.metrics import ACTIVE_STREAMS
from cosyserve.pipeline.admission import Admission
from cosyserve.pipeline.synthesizer import Synthesizer
from cosyserve.pipeline.text_session import TextPiece, TextSessions
from cosyserve.pipeline.timeline import Chunk
from cosyserve.triton.adapter import (
    FINAL,
    SEQUENCE_END,
    SEQUENCE_START,
    ErrorReply,
    TritonMetric,
    check_sample_rate,
    coded_error,
    public_error,
    read_inputs,
    read_parameter,
    read_settings,
    response,
    values,
)
from cosyserve.triton.bls import BlsStages
from cosyserve.triton.telemetry import UtteranceMetrics, UtteranceTelemetry
from cosyserve.triton.watchdog import Watchdog
from cosyserve.triton_defects import LOOKS_PER_SECOND, outlast

if TYPE_CHECKING:
    from cosyserve.traces import Traces

TRACEPARENT = "traceparent"
"""The parameter, or header, of a request that carries the W3C trace context of its sender."""

SWITCH_SECONDS = 0.0005
"""How long a thread of a BLS call may keep the interpreter from the event loop, instead of 5 ms."""

POLL_SECONDS = 0.05
"""Shortest time between two looks of a stream whether its client is still there: Triton has no event for it."""


class Tts:
    """Streams the audio of each request."""

    model = TTS
    _traces: Traces | None = None

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        settings = read_settings(args)
        sys.setswitchinterval(SWITCH_SECONDS)
        active = TritonMetric(ACTIVE_STREAMS, model=self.model.name)
        drain_file = Path(settings.drain_file) if settings.drain_file else None
        self._admission = Admission(settings.max_streams, drain_file, changed=active.set)
        self._sessions = TextSessions(settings.session_idle)
        self._lifetime = settings.lifetime
        self._traces = load_traces(settings)
        stages = BlsStages(settings)
        self._watchdog = Watchdog(stages.processes, lambda: self._admission.stops)
        traced = self._traces.stages(stages) if self._traces else stages
        grid = load_chunk_grid(settings)
        check_sample_rate(args, grid.sample_rate)
        self._synthesizer = Synthesizer(traced, grid, self._admission)
        # BLS calls wait in asyncio's default pool, which is far too small for many streams.
        self._pool = ThreadPoolExecutor(4 * settings.max_streams, thread_name_prefix="bls")
        self._instruments = UtteranceMetrics(self.model)

    def finalize(self) -> None:
        """Called by Triton at shutdown."""
        if self._traces:
            self._traces.close()

    async def execute(self, requests: list[Any]) -> None:
        """Answer each request; Triton runs many of these calls at once."""
        asyncio.get_running_loop().set_default_executor(self._pool)
        # Nothing is awaited before a request has joined its session, so the pieces of a text keep their order.
        answers = filter(None, [self._begin(request) for request in requests])
        await outlast(list(answers))

    def _utterance(self, request: Any) -> UtteranceTelemetry:
        span = self._traces.utterance(str(read_parameter(request, TRACEPARENT))) if self._traces else None
        return UtteranceTelemetry(request.request_id(), self.model, self._instruments, span)

    def _begin(self, request: Any) -> Coroutine[Any, Any, object] | None:
        """The coroutine that answers a request; None for further text of a session, which is handled here."""
        sender, id = request.get_response_sender(), request.correlation_id()
        if id and not request.flags() & SEQUENCE_START:
            self._write(request, sender, id)
            return None
        utterance, reply = self._utterance(request), ErrorReply(request)
        try:
            inputs = self._inputs(request)
            if not id:
                if "flush" in inputs:
                    raise InvalidInput("flush", "needs a session: a correlation id, and a request that starts it")
                return self._answer(sender, inputs, utterance, reply)
            piece, others = _split(inputs, ends=bool(request.flags() & SEQUENCE_END))
            utterance.session = self._sessions.open(id, piece)
            return self._answer_session(sender, others, utterance, reply, id)
        except Exception as error:
            return self._refuse(sender, utterance, reply, public_error(error, utterance.id))

    async def _refuse(
        self, sender: Any, utterance: UtteranceTelemetry, reply: ErrorReply, error: CosyServeError
    ) -> None:
        utterance.ended(error)
        await reply.send(sender, error)

    def _write(self, request: Any, sender: Any, id: int | str) -> None:
        """Append text to a session. Errors go to the opening request; one here would end the stream of both."""
        try:
            session = self._sessions.find(id)
        except InvalidInput as error:
            sender.send(coded_error(error, with_reason=False), flags=FINAL)
            return
        try:
            piece, others = _split(self._inputs(request), ends=bool(request.flags() & SEQUENCE_END))
            for name in others:
                raise InvalidInput(name, "belongs in the request that starts the session")
            session.write(piece)
        except Exception as error:
            session.fail(error)
        sender.send(flags=FINAL)

    async def _answer_session(
        self, sender: Any, inputs: Tensors, utterance: UtteranceTelemetry, reply: ErrorReply, id: int | str
    ) -> None:
        failed = await self._answer(sender, inputs, utterance, reply)
        (self._sessions.close_failed if failed else self._sessions.close)(id)

    async def _answer(self, sender: Any, inputs: Tensors, utterance: UtteranceTelemetry, reply: ErrorReply) -> bool:
        """Speak, and send the end or the error. Returns whether it ended with an error."""
        utterance.enter()
        session = utterance.session
        speech = asyncio.create_task(self._speak(sender, inputs, utterance))
        if session is not None:
            session.on_failure = speech.cancel
            if session.error:
                speech.cancel()
        watch = asyncio.create_task(self._cancel_when_gone(sender, speech))
        failed: CosyServeError | None = None
        try:
            async with asyncio.timeout(self._lifetime):
                with self._watchdog.watching(speech):
                    await speech
        except TimeoutError:
            failed = LifetimeOver(f"the utterance took longer than {self._lifetime} s")
        except asyncio.CancelledError:
            cause = (session.error if session else None) or self._watchdog.stopped
            failed = public_error(cause or Cancelled("the client closed the stream"), utterance.id)
        except Exception as error:
            failed = public_error(error, utterance.id)
        finally:
            watch.cancel()
            # Counted first, so that a client with the last response finds it counted.
            utterance.ended(failed)
            if failed is not None:
                await reply.send(sender, failed)
            else:
                sender.send(flags=FINAL)
        return failed is not None

    async def _speak(self, sender: Any, inputs: Tensors, utterance: UtteranceTelemetry) -> None:
        session, sample_rate = utterance.session, self._synthesizer.sample_rate(inputs)
        async with aclosing(self._synthesizer.speak(inputs, session)) as chunks:
            async for chunk in chunks:
                utterance.chunk_sent(chunk, sample_rate)
                if outputs := self._outputs(chunk):
                    sender.send(response(outputs, self.model))
                if session is not None:
                    session.touch()

    async def _cancel_when_gone(self, sender: Any, speech: asyncio.Task[None]) -> None:
        while not sender.is_cancelled():  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(max(POLL_SECONDS, self._admission.active / LOOKS_PER_SECOND))
        speech.cancel()

    def _inputs(self, request: Any) -> Tensors:
        """The inputs of a request, by contract `TTS`."""
        return read_inputs(request, TTS)

    def _outputs(self, chunk: Chunk) -> Tensors:
        """The outputs of a chunk; empty for no response."""
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


def _split(inputs: Tensors, *, ends: bool) -> tuple[TextPiece, Tensors]:
    """The piece of text in a request of a session, and its other inputs."""
    own = values({name: inputs[name] for name in ("text", "flush") if name in inputs}, TTS)
    piece = TextPiece(own.get("text", ""), flush=own.get("flush", False), end=ends)
    return piece, {name: value for name, value in inputs.items() if name not in own}
