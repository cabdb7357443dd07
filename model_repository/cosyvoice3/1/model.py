"""Upstream's contract for CosyVoice 3."""

from cosyserve.triton.compat import CompatModel


class TritonPythonModel(CompatModel):
    """See `cosyserve.triton.compat`."""
