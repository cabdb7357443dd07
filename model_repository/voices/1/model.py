"""Registered voices."""

from cosyserve.triton.voices import Voices


class TritonPythonModel(Voices):
    """See `cosyserve.triton.voices`."""
