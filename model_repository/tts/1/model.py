"""Text to speech: the model that users call."""

from cosyserve.triton.tts import Tts


class TritonPythonModel(Tts):
    """See `cosyserve.triton.tts`."""
