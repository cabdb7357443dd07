"""`verify` on a set of CosyVoice 1, of which some tensors were changed that no stage is fed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from cosyserve_build.verify import verify

SET = Path(__file__).parents[1] / "data" / "cosyvoice1-tiny"

CHANGED: dict[str, dict[str, float]] = {
    "frontend": {"text_ids_03": 1},
    "llm": {"greedy_tokens_instruct": 1, "greedy_tokens_cross_lingual": 1, "logits": 1e-3},
    "flow": {"mu": 1e-3, "est_out": 1e-3},
    "hift": {"wav": 1e-3},
    "e2e": {"stream2_pcm": 1e-3},
}


def test_what_was_changed_is_a_miss_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(SET, folder, copy_function=shutil.copyfile)
    for stem, tensors in CHANGED.items():
        path = folder / "vectors" / f"{stem}.npz"
        with np.load(path) as archive:
            content = dict(archive.items())
        for name, off in tensors.items():
            content[name] = content[name].copy()
            content[name].flat[-1] += off
        np.savez(path, **content)

    report = verify(folder)
    assert {row.name for row in report.rows if not row.passed} == {
        f"{stem}/{name}" for stem, tensors in CHANGED.items() for name in tensors
    }
    manifest = json.loads((SET / "manifest.json").read_text("utf-8"))
    recorded = {f"{Path(file).stem}/{name}" for file, names in manifest["vectors"].items() for name in names}
    declared = {name for name, _ in report.declared}
    assert {row.name for row in report.rows} | declared == recorded
    assert declared == {"flow/noise", "frontend/wav_24k", "hift/mel", "hift/source"}
