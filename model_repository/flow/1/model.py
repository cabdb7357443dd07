"""Speech tokens to mel frames."""

from cosyserve.triton.sequence import Flow


class TritonPythonModel(Flow):
    """See `cosyserve.triton.sequence`."""
