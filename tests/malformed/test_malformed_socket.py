"""A malformed message closes the connection with an error; a refusal by the server ends only the utterance."""

from __future__ import annotations

import json

import pytest
from gateways import Gateway
from judging import ANSWERED_SECONDS, Hung, Tally
from raw import INSIDE
from socket_corpus import CASES, Talk
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect


@pytest.mark.parametrize("name", CASES)
def test_malformed_conversations(doorman: Gateway, tally: Tally, name: str) -> None:
    with tally.judging(), connect(doorman.socket_url, max_size=None) as socket:
        assert json.loads(socket.recv(ANSWERED_SECONDS))["type"] == "ready"
        try:
            judge(CASES[name], socket)
        except TimeoutError:
            raise Hung from None
    doorman.wait_idle()


def judge(talk: Talk, socket: ClientConnection) -> None:
    """Run a conversation, and raise unless it ends as expected."""
    for message in talk.messages:
        socket.send(message)
    if talk.frames:
        socket.socket.sendall(talk.frames)
    if talk.told:
        answer = json.loads(socket.recv(ANSWERED_SECONDS))
        assert (answer["type"], answer["error"]["param"]) == ("error", talk.param), answer
        assert not INSIDE.search(answer["error"]["message"]), answer
        assert len(answer["error"]["message"]) < 1000
    if talk.closed:
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(ANSWERED_SECONDS)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == talk.closed
    else:
        socket.send('{"type": "config"}')
        socket.send('{"type": "end"}')
        assert json.loads(socket.recv(ANSWERED_SECONDS)) == {"type": "done", "samples": 0}
