"""CosyVoice text-to-speech on Triton Inference Server."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cosyserve")
except PackageNotFoundError:  # run from its source, uninstalled
    __version__ = "unknown"
