"""Speech tokens to mel frames."""

from cosyserve.triton.flow import Flow


class TritonPythonModel(Flow):
    """See `cosyserve.triton.flow`."""
