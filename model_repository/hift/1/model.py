"""Mel frames to PCM."""

from cosyserve.triton.sequence import Hift


class TritonPythonModel(Hift):
    """See `cosyserve.triton.sequence`."""
