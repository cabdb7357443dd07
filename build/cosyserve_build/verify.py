"""Compare our stages with the tensors that the original implementation recorded from the same bundle.

A set holds ``bundle/``, ``vectors/*.npz``, ``manifest.json``, ``prompt.wav`` and ``prompt.txt``. Each stage gets the
recorded inputs of that stage, so a miss identifies the stage that is wrong. Sizes, chunk grids, prompt lengths and
cases come from the bundle, the vectors and the manifest. A recorded tensor that no stage produces is a miss.

The stages run the server's own code on torch networks (see `probes`). Upstream's cross-fade between vocoder windows is
reproduced to check the windows before it; the server itself joins windows exactly.
"""

from __future__ import annotations

import fnmatch
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosyserve.errors import BundleError, Unsupported
from cosyserve.lazy import resolve
from cosyserve.settings import Settings
from cosyserve_build.bundles.bundle import read
from cosyserve_build.prepare import prepare
from cosyserve_build.probes import Array
from cosyserve_build.stages import VerifySpec
from cosyserve_build.stages.common import Stage
from cosyserve_build.stages.on_runtime import OnRuntime

TOLERANCES: tuple[tuple[str, float], ...] = (
    ("frontend/wav_*", 1e-6),  # the samples of the file
    # Relative errors of what `SPECTRA` names; measured on three recorded sets: at most 2e-4, 2.6e-5 and 1.8e-5.
    ("frontend/fbank_*", 5e-4),
    ("frontend/logmel128", 1e-4),
    ("frontend/speech_feat*", 1e-4),
    ("flow/*_euler_states", 2e-4),
    ("flow/est_x", 2e-4),
    ("flow/t_steps", 1e-6),
    ("flow/noise", 0.0),
    ("hift/*f0", 1e-2),
    ("hift/noise", 0.0),
    ("hift/stream*_source", 1e-2),
    ("hift/source*", 5e-3),
    ("hift/speech_window", 1e-6),
    ("hift/*wav*", 1e-5),
    ("e2e/offline_speed*_pcm", 5e-3),  # its source was not recorded
    ("e2e/*_pcm", 1e-5),
    ("e2e/*_source", 1e-2),
    ("*", 1e-4),
)
"""Maximum error of float tensors, absolute but for `SPECTRA`; the first match applies. Integers must be equal."""

DRIFTING = ("e2e/offline_speed*_pcm", "e2e/*_source", "hift/stream*_source")
"""Tensors made from a pitch that was not recorded. The original's float32 noise in it (5e-4 Hz) shifts the phase of the
harmonics more and more: the tolerance is for each second of the signal, up to `DRIFTED`."""

DRIFTED = 0.1
"""Maximum tolerance of a drifting tensor: a fifth of the amplitude of a source."""

VERIFY_CACHE_MIB = 512
"""Memory of the flow's KV cache for one recorded run."""

RESAMPLED = "resampled by soxr instead of torchaudio; later stages get the recorded wave"
"""Reason why the prompt at a rate other than its file's is not compared."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Logarithms of the bins of frames.

    A float32 Fourier transform leaves noise in each bin, as large as the rounding of the loudest one. The logarithm
    magnifies it in quiet bins: 5.9e-4 was seen where the sound itself is right to 1e-6. So not logarithms are compared,
    but what they stand for: an error counts in relation to its bin, or to `quiet` of the frame's loudest if the bin is
    quieter.

    Attributes:
        value: the logarithms to amplitudes or energies.
        axis: the one of the bins.
        quiet: share of the loudest bin, of amplitude or energy: 40 dB below it.
    """

    value: Callable[[Array], Array]
    axis: int
    quiet: float

    def error(self, recorded: Array, ours: Array) -> float:
        """Maximum relative error of tensors of one shape."""
        expected, found = self.value(recorded), self.value(ours)
        least = self.quiet * expected.max(axis=self.axis, keepdims=True)
        return float((np.abs(found - expected) / np.maximum(expected, least)).max(initial=0.0))


SPECTRA: tuple[tuple[str, Spectrum], ...] = (
    ("frontend/fbank_*", Spectrum(np.exp, -1, 1e-4)),
    ("frontend/logmel128", Spectrum(lambda x: 10 ** (4 * x - 4), 1, 1e-4)),
    ("frontend/speech_feat*", Spectrum(np.exp, -1, 1e-2)),
)
"""How logarithmic spectra are compared."""

NAN_PADDED = frozenset({"ras/nucleus_probs"})


@dataclass(frozen=True, slots=True)
class Row:
    """Comparison of a recorded tensor. The error is None if ours is absent, not finite, or of another shape or type."""

    name: str
    shape: tuple[int, ...]
    max_abs_error: float | None
    tolerance: float
    passed: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Result of `verify`: one row or one declaration for each recorded tensor."""

    rows: tuple[Row, ...]
    declared: tuple[tuple[str, str], ...]

    @property
    def misses(self) -> int:
        """Number of rows that did not pass."""
        return sum(not row.passed for row in self.rows)

    def to_json(self) -> str:
        """JSON: ``{"rows": [{"name", "shape", "max_abs_error", "tolerance", "pass"}], "declared", "misses"}``."""
        rows = [
            {
                "name": row.name,
                "shape": list(row.shape),
                "max_abs_error": row.max_abs_error,
                "tolerance": row.tolerance,
                "pass": row.passed,
            }
            for row in self.rows
        ]
        declared = [{"name": name, "reason": reason} for name, reason in self.declared]
        return json.dumps({"rows": rows, "declared": declared, "misses": self.misses}, indent=1)

    def table(self) -> str:
        """Text: one line for each tensor, misses with their cause, and a summary line at the end."""
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [f"{'tensor':{width}}  {'shape':>12}  {'max abs error':>13}  {'tolerance':>9}"]
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            error = "-" if row.max_abs_error is None else f"{row.max_abs_error:.1e}"
            verdict = "pass" if row.passed else f"MISS {row.note}".rstrip()
            lines.append(f"{row.name:{width}}  {shape:>12}  {error:>13}  {row.tolerance:>9.0e}  {verdict}")
        lines += [f"{name:{width}}  not compared: {reason}" for name, reason in self.declared]
        return "\n".join([*lines, f"{len(self.rows)} compared, {len(self.declared)} declared, {self.misses} misses"])


def verify(set_folder: Path | str, runtime: str = "", precision: str = "fp32") -> Report:
    """Run every stage on a set's bundle and compare the results with its vectors.

    Args:
        runtime: name of a runtime; the networks then run on it, on the CPU, and what it gives out is compared.
        precision: of this runtime.

    Raises:
        BundleError: the manifest is unreadable, or the bundle is invalid.
        Unsupported: the bundle's version cannot be verified, or does not run on the runtime.
    """
    folder = Path(set_folder)
    if not folder.is_dir():
        raise BundleError(f"{folder} does not exist")
    bundle = read(folder / "bundle")
    spec = bundle.description.verify
    if not spec:
        raise Unsupported(f"verify: CosyVoice version {bundle.version} is not supported yet")
    plan: VerifySpec = resolve(spec)
    data = plan.opens(folder, bundle)
    stages = _on_runtime(folder / "bundle", runtime, precision) if runtime else plan.stages
    declarations = (*plan.declared, *((f"frontend/wav_{rate // 1000}k", RESAMPLED) for rate in data.resampled_rates))
    produced: dict[str, Array] = {}
    failures: dict[str, str] = {}
    for part, stage in stages.items():
        try:
            for key, value in stage(data):
                produced[f"{part}/{key}"] = value
        except Exception as problem:  # the tensors of a stage that fails are misses; the report goes on
            failures[part] = f"{type(problem).__name__}: {problem}"
    rows: list[Row] = []
    declared: list[tuple[str, str]] = []
    for name, recorded in data.recorded():
        reason = next((reason for pattern, reason in declarations if fnmatch.fnmatch(name, pattern)), None)
        if runtime and name not in produced and name.split("/")[0] not in failures:
            reason = reason or "the runtime does not give it out"
        if reason is not None and recorded is not None:
            declared.append((name, reason))
        else:
            failure = failures.get(name.split("/")[0], "")
            rows.append(_compare(name, recorded, produced.get(name), failure, data.bundle.config.sample_rate))
    return Report(tuple(rows), tuple(declared))


def _on_runtime(bundle: Path, runtime: str, precision: str) -> dict[str, Stage]:
    """Stages on a runtime as the server loads it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "weights"
        prepare(bundle, folder, runtimes=[runtime])
        settings = Settings(
            weights=str(folder),
            runtime=runtime,
            precision=precision,
            llm_precision=precision,
            llm_slots=1,
            flow_cache_mib=VERIFY_CACHE_MIB,
        )
        return OnRuntime(settings).stages


def _tolerance(name: str, seconds: float) -> float:
    tolerance = next(value for pattern, value in TOLERANCES if fnmatch.fnmatch(name, pattern))
    drifts = any(fnmatch.fnmatch(name, pattern) for pattern in DRIFTING)
    return min(tolerance * max(1.0, seconds), DRIFTED) if drifts else tolerance


def _compare(name: str, recorded: Array | None, ours: Array | None, failure: str, rate: int) -> Row:
    if recorded is None:
        return Row(name, (), None, 0.0, False, "listed in the manifest, but not recorded")
    exact = recorded.dtype.kind in "biu"
    tolerance = 0.0 if exact else _tolerance(name, recorded.shape[-1] / rate)

    def miss(note: str) -> Row:
        return Row(name, recorded.shape, None, tolerance, False, note)

    if ours is None:
        return miss(failure or "no check for this tensor")
    if ours.shape != recorded.shape:
        return miss(f"shape {list(ours.shape)}")
    if exact != (ours.dtype.kind in "biu") or recorded.dtype.kind not in "biuf":
        return miss(f"dtype {ours.dtype} against {recorded.dtype}")
    a, b = recorded.astype(np.float64), ours.astype(np.float64)
    if name in NAN_PADDED:
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return miss("padding differs")
        a, b = np.nan_to_num(a), np.nan_to_num(b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return miss("not finite")
    spectrum = next((found for pattern, found in SPECTRA if fnmatch.fnmatch(name, pattern)), None)
    error = spectrum.error(a, b) if spectrum else float(np.abs(a - b).max(initial=0.0))
    return Row(name, recorded.shape, error, tolerance, error <= tolerance)
