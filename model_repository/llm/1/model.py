"""Text tokens to speech tokens."""

from cosyserve.triton.llm import Llm


class TritonPythonModel(Llm):
    """See `cosyserve.triton.llm`."""
