"""The table of error codes covers servers, clients and gateways; errors as text round-trip in both forms."""

from __future__ import annotations

import pickle

import pytest

from cosyserve import errors
from cosyserve.codes import CODES, CodedMessage, of_client, reasons
from cosyserve_client import errors as client_errors
from cosyserve_client.errors import NotFound, ServerError, from_message, from_status


def kinds(base: type[Exception]) -> list[type[Exception]]:
    return [base, *(kind for each in base.__subclasses__() for kind in kinds(each))]


def test_every_class_of_the_server_has_its_row() -> None:
    rows = {code.server: (code.status, code.reason) for code in CODES if code.server}
    found = {kind.__name__: (kind.code, kind.reason) for kind in kinds(errors.CosyServeError)[1:]}  # type: ignore[attr-defined]
    assert {name: told for name, told in found.items() if name in vars(errors)} == rows


def test_every_class_of_the_client_has_its_row() -> None:
    assert {code.client for code in CODES} == {kind.__name__ for kind in kinds(client_errors.CosyServeClientError)}
    for code in CODES:
        if code.status:
            error = from_status(code.status, "words")
            assert type(error).__name__ == code.client
            assert of_client(type(error).__name__, code.reason) == code or code.client == "ServerError"


def test_no_row_is_there_twice() -> None:
    named = [(code.status, code.reason, code.server, code.client) for code in CODES]
    assert len(set(named)) == len(named)


def test_an_unknown_reason_counts_as_its_status() -> None:
    assert of_client("Unavailable", "of_tomorrow") == of_client("Unavailable")
    assert of_client("NotFound", "of_tomorrow").http_code == "unreachable"


def test_reasons_are_those_of_a_status() -> None:
    assert reasons("UNAVAILABLE") == ("streams", "memory", "draining")
    assert reasons("CANCELLED") == ("client", "idle", "lifetime")
    assert reasons("INTERNAL") == ("finite",)


@pytest.mark.parametrize(
    ("with_reason", "text"),
    [(True, "NOT_FOUND/voice | no voice | a\nb"), (False, "NOT_FOUND | no voice | a\nb")],
)
def test_both_forms_are_read_back(with_reason: bool, text: str) -> None:
    coded = CodedMessage("NOT_FOUND", "voice", "no voice | a\nb")
    assert coded.encode(with_reason=with_reason) == text
    assert CodedMessage.decode(text) == CodedMessage("NOT_FOUND", "voice" if with_reason else "", coded.message)


def test_words_of_an_ensemble_may_come_before() -> None:
    text = "in ensemble 'token2wav', INVALID_ARGUMENT/ | speaker_embedding: is required"
    assert CodedMessage.decode(text) == CodedMessage("INVALID_ARGUMENT", "", "speaker_embedding: is required")


@pytest.mark.parametrize("text", ["", "no voice", "unknown input 'A | b'", "tts | is not ready", "NOT_FOUND|x"])
def test_other_texts_have_no_code(text: str) -> None:
    assert CodedMessage.decode(text) is None
    error = from_message(text)
    assert (type(error), error.code, error.reason, error.message) == (ServerError, "UNKNOWN", "", text)


def test_a_coded_status_has_its_reason_and_keeps_it_across_processes() -> None:
    error = from_status("StatusCode.NOT_FOUND", "NOT_FOUND/voice | no voice named 'x'")
    assert isinstance(error, NotFound)
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (each.code, each.reason, each.message) == ("NOT_FOUND", "voice", "no voice named 'x'")
