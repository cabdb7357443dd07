"""What a network returned, checked before it is heard: NaN would become silence, and nobody would be told."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosyserve.errors import NotFinite


def check_finite(what: str, values: NDArray[Any]) -> None:
    """Pass if every value is a number.

    Raises:
        NotFinite: naming `what`.
    """
    if not np.isfinite(values).all():
        raise NotFinite(f"the networks returned {what} that is not finite")
