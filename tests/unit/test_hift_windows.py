"""Windows of several streams in one call: which may be padded, and the graph's inputs."""

from __future__ import annotations

import numpy as np
import pytest

from cosyserve.hift.windows import ALIGNMENT, Window, Windowed
from cosyserve.runtimes.graph import Arrays, Outputs

FRAME = 3


class Summing:
    """A graph that sums its mel over channels, and keeps its inputs."""

    def __init__(self) -> None:
        self.inputs: list[Arrays] = []

    def __call__(self, inputs: Arrays) -> Outputs:
        self.inputs.append(inputs)
        return Outputs(sum=np.asarray(inputs["mel"]).sum(axis=1))


@pytest.fixture
def graph() -> Summing:
    return Summing()


@pytest.fixture
def network(graph: Summing) -> Windowed:
    return Windowed(graph, {"mel": (1, 1), "source": (1, FRAME)})


def window(frames: int, *, end: bool = False, value: float = 1.0) -> Window:
    inputs = {
        "mel": np.full((2, frames), value, np.float32),
        "source": np.full((1, FRAME * frames), value, np.float32),
        "phase": np.full(4, value, np.float32),
    }
    return Window(inputs, frames, end)


def test_windows_with_more_to_come_are_padded_on_the_right(graph: Summing, network: Windowed) -> None:
    """Inputs without a time axis are not padded."""
    long, short = network([window(10), window(7, value=2.0)])
    (inputs,) = graph.inputs
    assert {name: np.shape(array) for name, array in inputs.items()} == {
        "mel": (2, 2, 10),
        "source": (2, 1, 10 * FRAME),
        "phase": (2, 4),
    }
    np.testing.assert_array_equal(np.asarray(inputs["source"])[1, 0], [2.0] * 7 * FRAME + [0.0] * 3 * FRAME)
    np.testing.assert_array_equal(long["sum"], [2.0] * 10)
    np.testing.assert_array_equal(short["sum"], [4.0] * 7 + [0.0] * 3)


def test_a_window_alone_is_given_as_it_is(graph: Summing, network: Windowed) -> None:
    for end in (False, True):
        (out,) = network([window(7, end=end)])
        assert out["sum"].shape == (7,)


def test_windows_of_about_one_length_share_a_call(network: Windowed) -> None:
    batch = [window(40), window(45)]
    assert network.can_batch(batch, window(45 - ALIGNMENT + 1))
    assert not network.can_batch(batch, window(45 - ALIGNMENT))
    assert network.can_batch(batch, window(40 + ALIGNMENT - 1))
    assert not network.can_batch(batch, window(40 + ALIGNMENT))


def test_the_end_of_an_utterance_is_never_made_longer(network: Windowed) -> None:
    assert network.can_batch([window(40)], window(40, end=True))
    assert network.can_batch([window(40)], window(41, end=True))
    assert not network.can_batch([window(40)], window(39, end=True))
    assert network.can_batch([window(40, end=True)], window(39))
    assert not network.can_batch([window(40, end=True)], window(41))
    assert network.can_batch([window(40, end=True), window(35)], window(40, end=True))
    assert not network.can_batch([window(40, end=True), window(35)], window(35, end=True))
