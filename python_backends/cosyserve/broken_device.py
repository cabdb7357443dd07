"""Errors after which a process cannot use its GPU any more."""

from __future__ import annotations

import sys

STICKY = (700, 214, 701, 702, 709, 710, 714, 715, 716, 717, 718, 719, 720, 999)
"""CUDA errors that spoil the context: illegal access, memory fault of the card, failed launch and their like."""


def is_broken_device(error: BaseException) -> bool:
    """Whether every later call on the GPU fails too, as after an illegal access or a memory fault of the card.

    Too little memory is no such error, and neither is a call with a wrong value.
    """
    torch = sys.modules.get("torch")  # without it there is no such error
    return (
        torch is not None
        and isinstance(error, torch.AcceleratorError)
        and getattr(error, "error_code", STICKY[0]) in STICKY
    )
