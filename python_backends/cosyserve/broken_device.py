"""Errors after which a process cannot use its GPU any more."""

from __future__ import annotations

import sys


def is_broken_device(error: BaseException) -> bool:
    """Whether every later call on the GPU fails too, as after an illegal access or a memory fault of the card.

    Too little memory is no such error.
    """
    torch = sys.modules.get("torch")  # without it there is no such error
    return torch is not None and isinstance(error, torch.AcceleratorError)
