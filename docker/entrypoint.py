"""What the container runs: checks the weights, starts MPS, then becomes ``cosyserve serve``, which gets the signals.

Arguments are those of ``cosyserve serve`` except ``--weights``, which is COSYSERVE_WEIGHTS.

Without MPS (NVIDIA's Multi-Process Service) the kernels of the three model processes take turns on the GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cosyserve.errors import WeightsError
from cosyserve.weights import Weights

MPS_SECONDS = 10.0
"""Longest wait for the daemon; it goes to the background at once."""


MPS_FOLDERS = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
"""Variables of the image that name the daemon's folders."""


def main() -> None:
    """Run the server; exit with 1 and one line if a file of the weights is missing or damaged."""
    folder = os.environ["COSYSERVE_WEIGHTS"]
    try:
        Weights(Path(folder)).check()
    except WeightsError as error:
        sys.exit(f"error: {error}")
    start_mps()
    os.execvp("cosyserve", ["cosyserve", "serve", "--weights", folder, *sys.argv[1:]])


def start_mps() -> None:
    """Start the MPS control daemon where the image has folders for it; a line says how that went."""
    folders = [folder for name in MPS_FOLDERS if (folder := os.environ.get(name))]
    daemon = shutil.which("nvidia-cuda-mps-control")
    if daemon is None or len(folders) < len(MPS_FOLDERS):
        return
    try:
        for folder in folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
        # To a file: the daemon keeps what it inherits, and a pipe would be waited for.
        with tempfile.TemporaryFile("w+") as output:
            started = subprocess.run(
                [daemon, "-d"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=MPS_SECONDS, check=False
            )
            output.seek(0)
            said = output.read().strip()
        if started.returncode:
            raise OSError(said or f"exit code {started.returncode}")
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
        print(f"MPS could not be started, so the models' kernels take turns on the GPU: {said}", file=sys.stderr)
        for name in MPS_FOLDERS:  # the models need not look for a daemon there
            del os.environ[name]
    else:
        print("MPS runs: the models' kernels run side by side on the GPU", file=sys.stderr)


if __name__ == "__main__":
    main()
