"""Makes ``demo/weights.tar.xz``: random weights of size tiny, prepared, until there is a voice that speaks."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from cosyserve_build.prepare import prepare
from cosyserve_build.synth import synth_bundle

ARCHIVE = Path(__file__).with_name("weights.tar.xz")


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without owner and time, so that equal weights make an equal archive."""
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


with tempfile.TemporaryDirectory() as scratch:
    bundle, weights = Path(scratch) / "bundle", Path(scratch) / "weights"
    synth_bundle(bundle, version=2, size="tiny", seed=0)
    prepare(bundle, weights, report=print)
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for path in sorted(weights.iterdir()):
            archive.add(path, path.name, filter=_plain)
print(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 1e6:.1f} MB")
