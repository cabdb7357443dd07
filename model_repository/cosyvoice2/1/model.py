"""Upstream's contract for CosyVoice 2."""

from cosyserve.triton.upstream import CosyVoice2


class TritonPythonModel(CosyVoice2):
    """See `cosyserve.triton.upstream`."""
