"""What the container runs: checks the weights, then becomes ``cosyserve serve``, which is who gets the signals.

Arguments are those of ``cosyserve serve`` but ``--weights``: the folder is COSYSERVE_WEIGHTS.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cosyserve.errors import WeightsError
from cosyserve.weights import Weights


def main() -> None:
    """Exits with 1 and one line when a file is missing or changed; else it does not return."""
    folder = os.environ["COSYSERVE_WEIGHTS"]
    try:
        Weights(Path(folder)).check()
    except WeightsError as error:
        sys.exit(f"error: {error}")
    os.execvp("cosyserve", ["cosyserve", "serve", "--weights", folder, *sys.argv[1:]])


if __name__ == "__main__":
    main()
