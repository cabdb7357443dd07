"""Every request gets an answer: generated tensors for every model, generated texts, sessions in any order."""

from __future__ import annotations

from itertools import count

import numpy as np
from grpc_corpus import EMBEDDING, HI, MORE, SEED, SOME, STOP, TARGET, frames, step
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import ANSWERED_SECONDS, Hung, Tally
from live import Live
from raw import IN_BODY, Answer, Input, message, numbers, send, words
from test_malformed_grpc import assert_harmless

from cosyserve.contracts import MODELS, Scheduling

settings.register_profile("malformed", derandomize=True, database=None, deadline=None)
settings.load_profile("malformed")

UTTERANCE = numbers("utterance", "INT64", np.asarray([2**50]))

GOOD: dict[str, tuple[Input, ...]] = {
    "tts": (HI,),
    "cosyvoice2": TARGET,
    "voices": (words("action", "list"),),
    "frontend": (HI,),
    "llm": (UTTERANCE, SEED, SOME, MORE),
    "flow": (EMBEDDING, *step(1, 2)),
    "token2wav": (EMBEDDING, *step(1, 2)),
    "hift": frames(),
}

ids = count(2**45)

# No product of these is too large for 64 bits: see test_known_in_triton.
dims = st.lists(st.sampled_from([0, 1, 2, 3, 80, 192, 2**20, -1, -(2**20)]), max_size=3).map(tuple)
datatypes = st.sampled_from(["BYTES", "FP32", "INT32", "INT64", "BOOL", "FP16", "UINT8", "none", ""])
contents = st.one_of(
    st.binary(max_size=64),
    st.lists(st.binary(max_size=8), max_size=3).map(lambda values: words("x", *values).content),
    st.lists(st.floats(width=32), max_size=8).map(lambda values: np.asarray(values, "<f4").tobytes()),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8).map(lambda values: np.asarray(values, "<i4").tobytes()),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2).map(lambda values: np.asarray(values, "<i8").tobytes()),
)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Input]:
    """Generate an input of a model; about half have the right type and rank."""
    model = draw(st.sampled_from([model for model in MODELS if model.name in GOOD]))
    tensor = draw(st.sampled_from(model.inputs))
    batch = () if model.scheduling in (Scheduling.PLAIN, Scheduling.DECOUPLED) else (1,)
    fitting = st.tuples(*(st.integers(0, 8) if dim < 0 else st.just(dim) for dim in tensor.dims))
    shape = draw(st.one_of(dims, fitting.map(lambda shape: batch + shape)))
    datatype = draw(st.one_of(st.just(tensor.dtype), datatypes))
    size = {"FP32": 4, "INT32": 4, "INT64": 8, "BOOL": 1}.get(datatype, 0)
    fits = max(0, int(np.prod(shape, dtype=object))) * size
    content = draw(st.one_of(contents, st.binary(min_size=fits, max_size=fits) if 0 < fits < 4096 else contents))
    return model.name, Input(tensor.name, datatype, shape, content)


def judge(answer: Answer) -> None:
    if answer.code == "DEADLINE_EXCEEDED":
        raise Hung
    assert answer.code in ("OK", IN_BODY), answer
    assert_harmless(answer)


@settings(max_examples=500)
@given(tensors())
def test_made_up_tensors(server: Live, tally: Tally, made: tuple[str, Input]) -> None:
    model, tensor = made
    inputs = [entry for entry in GOOD[model] if entry.name != tensor.name]
    stateful = model in ("flow", "hift", "token2wav")
    flags = {"sequence": next(ids), "start": True, "end": True} if stateful else {}
    with tally.judging():
        judge(send(server.url, message(model, *inputs, tensor, **flags), seconds=ANSWERED_SECONDS))
    if model == "llm":
        utterance = tensor if tensor.name == UTTERANCE.name else UTTERANCE
        send(server.url, message("llm", utterance, STOP), seconds=ANSWERED_SECONDS)


@settings(max_examples=300)
@given(st.text(max_size=200))
def test_made_up_texts_are_read_or_refused(server: Live, tally: Tally, text: str) -> None:
    with tally.judging():
        answer = send(server.url, message("frontend", words("text", text)), seconds=ANSWERED_SECONDS)
        judge(answer)
        assert answer.code == "OK" or "text: holds nothing that can be spoken" in answer.message


PIECES = {
    "start": lambda id: message("tts", sequence=id, start=True),
    "start with text": lambda id: message("tts", HI, sequence=id, start=True),
    "text": lambda id: message("tts", words("text", "and "), sequence=id),
    "blank": lambda id: message("tts", words("text", " "), sequence=id),
    "flush": lambda id: message("tts", numbers("flush", "BOOL", np.asarray([True])), sequence=id),
    "end": lambda id: message("tts", sequence=id, end=True),
    "text and end": lambda id: message("tts", words("text", "now."), sequence=id, end=True),
    "wrong": lambda id: message("tts", words("voice", "nobody"), sequence=id),
    "not UTF-8": lambda id: message("tts", words("text", b"\xff"), sequence=id),
}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(sorted(PIECES)), st.booleans()), max_size=8))
def test_sessions_in_any_order(server: Live, tally: Tally, pieces: list[tuple[str, bool]]) -> None:
    here, there = next(ids), next(ids)
    messages = [PIECES[name](here if which else there) for name, which in pieces]
    ends = [PIECES["end"](id) for id in (here, there)]
    with tally.judging():
        judge(send(server.url, *messages, *ends, seconds=ANSWERED_SECONDS))
