"""Text and prompt audio to model inputs."""

from cosyserve.triton.frontend import Frontend


class TritonPythonModel(Frontend):
    """See `cosyserve.triton.frontend`."""
