"""Upstream's contract for CosyVoice 2."""

from cosyserve.triton.compat import CompatModel


class TritonPythonModel(CompatModel):
    """See `cosyserve.triton.compat`."""
