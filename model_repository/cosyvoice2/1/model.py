"""Upstream's contract for CosyVoice 2."""

from cosyserve.triton.compat import CosyVoice2


class TritonPythonModel(CosyVoice2):
    """See `cosyserve.triton.compat`."""
