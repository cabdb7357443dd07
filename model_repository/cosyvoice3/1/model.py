"""Upstream's contract for CosyVoice 3."""

from cosyserve.triton.compat import CosyVoice3


class TritonPythonModel(CosyVoice3):
    """See `cosyserve.triton.compat`."""
