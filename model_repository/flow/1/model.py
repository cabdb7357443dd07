"""Speech tokens to mel frames."""

from cosyserve.triton.sequence_model import Flow


class TritonPythonModel(Flow):
    """See `cosyserve.triton.sequence_model`."""
