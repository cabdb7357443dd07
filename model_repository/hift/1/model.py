"""Mel frames to PCM."""

from cosyserve.triton.hift import Hift


class TritonPythonModel(Hift):
    """See `cosyserve.triton.hift`."""
