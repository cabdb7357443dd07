"""Mel frames to PCM."""

from cosyserve.triton.sequence_model import Hift


class TritonPythonModel(Hift):
    """See `cosyserve.triton.sequence_model`."""
