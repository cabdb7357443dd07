"""`verify` on the recorded sets: every stage reproduces the original, and damage is found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cosyserve.audio.features import resample
from cosyserve.errors import BundleError, Unsupported
from cosyserve.hift.noise import FixedNoise
from cosyserve_build.bundles.bundle import read
from cosyserve_build.noise import vocoder_draws
from cosyserve_build.verify import SPECTRA, TOLERANCES, Report, verify

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"
TINY1 = TINY.with_name("cosyvoice1-tiny")


BISTREAM = ("prompt", "noprompt", "scripted_prompt", "scripted_noprompt", "earlyfill")


def edit_vectors(folder: Path, stem: str, **changes: np.ndarray | None) -> None:
    path = folder / "vectors" / f"{stem}.npz"
    with np.load(path) as archive:
        tensors = dict(archive.items())
    for key, value in changes.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    np.savez(path, **tensors)


def missed(report: Report) -> set[str]:
    return {row.name for row in report.rows if not row.passed}


def copy_set(target: Path) -> Path:
    shutil.copytree(TINY, target, copy_function=shutil.copyfile)
    for folder in (target, *target.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    return target


@pytest.fixture(scope="module")
def clean() -> Report:
    return verify(TINY)


@pytest.fixture(scope="module")
def clean3(set3: Path) -> Report:
    return verify(set3)


@pytest.fixture(params=[2, 3])
def version(request: pytest.FixtureRequest) -> int:
    """Versions whose set is verified unchanged; that of CosyVoice 1 is verified with changes, see `CHANGED`."""
    found: int = request.param
    return found


@pytest.fixture
def recorded(version: int, set3: Path) -> Path:
    return {2: TINY, 3: set3}[version]


@pytest.fixture
def reproduced(version: int, request: pytest.FixtureRequest) -> Report:
    report: Report = request.getfixturevalue({2: "clean", 3: "clean3"}[version])
    return report


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One run over a copy with several independent damages."""
    folder = copy_set(tmp_path_factory.mktemp("damaged") / "set")
    with np.load(TINY / "vectors" / "flow.npz") as flow, np.load(TINY / "vectors" / "llm.npz") as llm:
        logp, spks, steps = llm["logp"].copy(), flow["spks"].copy(), flow["chunk0_euler_states"]
        emitted = llm["bistream_prompt_emitted"].copy()
    logp[0, 7] += 1e-3
    emitted[-1] += 1
    spks[0, 3] = np.nan
    edit_vectors(folder, "llm", logp=logp, bistream_prompt_emitted=emitted)
    edit_vectors(
        folder,
        "flow",
        spks=spks,
        t_steps=None,
        chunk0_euler_states=steps[:, :, :-1],
        surprise=np.zeros(3, np.float32),
    )
    np.savez(folder / "vectors" / "extra.npz", unknown=np.zeros(2, np.float32))
    state = torch.load(folder / "bundle" / "hift.pt", weights_only=True)
    state["conv_post.bias"] = state["conv_post.bias"] + 0.01
    torch.save(state, folder / "bundle" / "hift.pt")
    return verify(folder)


def test_every_recorded_tensor_passes(reproduced: Report) -> None:
    assert [(row.name, row.note, row.max_abs_error) for row in reproduced.rows if not row.passed] == []
    assert reproduced.misses == 0


def test_every_recorded_tensor_is_a_row_or_declared(reproduced: Report, recorded: Path) -> None:
    tensors = []
    for path in (recorded / "vectors").glob("*.npz"):
        with np.load(path) as archive:
            tensors += [f"{path.stem}/{key}" for key in archive.files]
    named = [row.name for row in reproduced.rows] + [name for name, _ in reproduced.declared]
    assert sorted(named) == sorted(tensors)
    assert all(reason for _, reason in reproduced.declared)


def test_only_inputs_are_declared(clean: Report) -> None:
    assert {name for name, _ in clean.declared} == {
        "ras/logp",
        "ras/history",
        "ras/ignore_eos",
        "ras/race_q_nucleus",
        "ras/race_q_full",
        "ras/cdf_u",
        *(f"llm/bistream_{run}_prompt_{kind}" for run in BISTREAM for kind in ("text_ids", "speech_token")),
        "flow/spk_raw",
        "flow/prompt_token",
        "flow/prompt_feat",
        "flow/token",
        "frontend/wav_24k",
        "hift/mel",
        "hift/stream_mel",
        "hift/noise",
        "hift/rand_ini",
        "hift/stream0_source",
        "hift/stream1_source",
        "hift/stream2_source",
    }


def test_tolerances_follow_the_recorded_float_noise(clean: Report) -> None:
    tolerance = {row.name: row.tolerance for row in clean.rows}
    assert tolerance["llm/greedy_tokens"] == 0
    assert tolerance["llm/logits"] == tolerance["flow/full_offline_mel"] == tolerance["flow/est_out_streaming"] == 1e-4
    assert tolerance["flow/chunk0_euler_states"] == 2e-4
    assert tolerance["hift/f0"] == 1e-2
    assert tolerance["hift/stream1_wav_raw"] == 1e-5
    assert tolerance["e2e/offline_pcm"] == 1e-5
    assert tolerance["frontend/wav_16k"] == 1e-6


def test_the_tolerance_of_a_source_grows_with_its_length(clean: Report) -> None:
    tolerance = {row.name: row.tolerance for row in clean.rows}
    assert tolerance["e2e/stream0_source"] == pytest.approx(1e-2 * 30720 / 24000)
    assert tolerance["e2e/offline_source"] == pytest.approx(1e-2 * 132480 / 24000)
    assert tolerance["e2e/offline_speed125_pcm"] == pytest.approx(5e-3 * 105600 / 24000)


def test_json_form(clean: Report) -> None:
    data = json.loads(clean.to_json())
    assert set(data) == {"rows", "declared", "misses"}
    assert all(set(row) == {"name", "shape", "max_abs_error", "tolerance", "pass"} for row in data["rows"])
    logits = next(row for row in data["rows"] if row["name"] == "llm/logits")
    assert logits["shape"] == [21, 6564]
    assert 0 < logits["max_abs_error"] < 1e-4
    assert logits["pass"] is True


def test_damage_is_a_miss_and_nothing_else_is(damaged: Report) -> None:
    # The vocoder's last bias moves every waveform, and no other stage.
    waves = {f"hift/stream{i}_wav{kind}" for i in range(3) for kind in ("", "_raw")} | {"hift/wav"}
    pcm = {"e2e/offline_pcm", "e2e/offline_speed125_pcm"} | {f"e2e/stream{i}_pcm" for i in range(3)}
    others = {
        "llm/logp",
        "llm/bistream_prompt_emitted",
        "flow/spks",
        "flow/t_steps",
        "flow/chunk0_euler_states",
        "flow/surprise",
        "extra/unknown",
    }
    assert waves | others <= missed(damaged) <= waves | others | pcm
    assert damaged.misses == len(missed(damaged))


def test_the_table_shows_misses_and_their_causes(damaged: Report) -> None:
    *lines, summary = damaged.table().splitlines()
    assert sum(" MISS" in line for line in lines) == damaged.misses
    assert summary == f"{len(damaged.rows)} compared, {len(damaged.declared)} declared, {damaged.misses} misses"
    assert any(line.startswith("flow/spks ") and line.endswith("MISS not finite") for line in lines)


def test_damage_is_explained(damaged: Report) -> None:
    note = {row.name: row.note for row in damaged.rows}
    assert note["flow/surprise"] == "no check for this tensor"
    assert note["flow/spks"] == "not finite"
    assert note["flow/t_steps"] == "listed in the manifest, but not recorded"
    assert note["flow/chunk0_euler_states"] == "shape [10, 80, 250]"
    error = {row.name: row.max_abs_error for row in damaged.rows}
    assert error["llm/logp"] == pytest.approx(1e-3, rel=0.1)
    assert error["flow/spks"] is None


def test_a_broken_stage_is_reported_as_misses_of_its_tensors(tmp_path: Path) -> None:
    folder = copy_set(tmp_path / "set")
    (folder / "bundle" / "llm.pt").write_bytes(b"not a checkpoint")
    report = verify(folder)
    assert {"llm/logits", "llm/greedy_tokens", "e2e/tokens"} <= missed(report)
    note = next(row.note for row in report.rows if row.name == "llm/logits")
    assert note.startswith("BundleError: llm.pt: unreadable")
    assert not {"ras/race_token", "flow/full_offline_mel", "e2e/offline_pcm"} & missed(report)


def test_a_set_recorded_from_another_prompt_rate(tmp_path: Path) -> None:
    folder = copy_set(tmp_path / "set")
    wave, rate = soundfile.read(folder / "prompt.wav", dtype="float32")
    soundfile.write(folder / "prompt.wav", resample(wave, rate, 44_100), 44_100)
    report = verify(folder)
    assert report.misses == 0
    assert {"frontend/wav_16k", "frontend/wav_24k"} <= {name for name, _ in report.declared}


def test_a_wrong_wave_at_the_rate_of_the_file_is_a_miss(tmp_path: Path) -> None:
    folder = copy_set(tmp_path / "set")
    wave, rate = soundfile.read(folder / "prompt.wav", dtype="float32")
    soundfile.write(folder / "prompt.wav", wave * 0.999, rate)
    assert missed(verify(folder)) == {"frontend/wav_16k"}


def test_the_stored_speaker_is_found_among_others(tmp_path: Path) -> None:
    folder = copy_set(tmp_path / "set")
    path = folder / "bundle" / "spk2info.pt"
    speakers = torch.load(path, weights_only=True)
    stored = speakers["spk_tiny"]
    other = {**stored, "llm_prompt_speech_token": stored["llm_prompt_speech_token"][:, :50]}
    torch.save({"another": other, "bare": {"embedding": stored["embedding"]}, **speakers}, path)
    assert verify(folder).misses == 0


def test_damage_of_recorded_inputs_is_found(tmp_path: Path) -> None:
    folder = copy_set(tmp_path / "set")
    with np.load(folder / "vectors" / "flow.npz") as flow, np.load(folder / "vectors" / "hift.npz") as hift:
        token, mel = flow["token"].copy(), hift["mel"] + 0.1
    token[0, 20] += 1
    edit_vectors(folder, "flow", token=token)
    edit_vectors(folder, "hift", mel=mel)
    found = missed(verify(folder))
    assert {f"flow/{case}_mel" for case in ("chunk0", "chunk1", "full_stream", "full_offline")} <= found
    assert {"hift/f0", "hift/wav"} <= found
    assert not {name for name in found if name.startswith(("frontend/", "llm/", "ras/", "e2e/"))}


# Tensors that are no stage's input, and by how much each is changed.
CHANGED: dict[str, dict[str, float]] = {
    "frontend": {"text_ids_03": 1},
    "llm": {"greedy_tokens_instruct": 1, "greedy_tokens_cross_lingual": 1, "logits": 1e-3},
    "flow": {"mu": 1e-3, "est_out": 1e-3},
    "hift": {"wav": 1e-3},
    "e2e": {"stream2_pcm": 1e-3},
}


def test_what_was_changed_in_a_set_of_version_1_is_a_miss_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(TINY1, folder, copy_function=shutil.copyfile)
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
    manifest = json.loads((TINY1 / "manifest.json").read_text("utf-8"))
    recorded = {f"{Path(file).stem}/{name}" for file, names in manifest["vectors"].items() for name in names}
    declared = {name for name, _ in report.declared}
    assert {row.name for row in report.rows} | declared == recorded
    assert declared == {"flow/noise", "frontend/wav_24k", "hift/mel", "hift/source"}


def test_the_noise_of_version_3_is_drawn_and_not_only_fed(clean3: Report) -> None:
    errors = {row.name: row.max_abs_error for row in clean3.rows}
    assert errors["hift/noise"] == errors["hift/rand_ini"] == 0


def test_official_sizes_of_version_3_draw_the_published_noise(set3: Path) -> None:
    config = read(set3 / "bundle").config
    phases, twister = vocoder_draws(replace(config, hift=replace(config.hift, f0_channels=512)))
    noise = FixedNoise(twister)
    first, second = noise(1, 9), noise(1, 9)
    expected = [0, 0.1709889, 0.1653319, 0.1437801, 0.7629474, 0.6589301, 0.0275190, 0.4348254, 0.0538356]
    np.testing.assert_allclose(phases, expected, atol=1e-7)
    expected = [0.9228260, 0.4774475, 0.8270519, 0.2834572, 0.7934816, 0.1734348, 0.8523750, 0.9228546, 0.7310200]
    np.testing.assert_allclose(first[0], expected, atol=1e-7)
    expected = [0.9203, 0.2437, 0.7897, 0.3580, 0.0182, 0.7698, 0.0905, 0.0133, 0.5192]
    np.testing.assert_allclose(second[0], expected, atol=1e-4)


def test_a_set_without_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(TINY / "bundle")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        verify(tmp_path)


@pytest.mark.parametrize("version", [2, 3])
def test_the_torch_runtime_gives_out_what_was_recorded(version: int, set3: Path) -> None:
    folder = set3 if version == 3 else TINY
    report = verify(folder, "torch")
    names = {row.name for row in report.rows}
    assert names >= {"flow/full_stream_mel", "flow/full_offline_mel", "hift/wav", "llm/logits", "llm/greedy_tokens"}
    assert [row.name for row in report.rows if not row.passed] == []


def test_a_runtime_that_does_not_run_the_version_is_refused() -> None:
    with pytest.raises(Unsupported, match="not for CosyVoice version 1"):
        verify(TINY1, "torch")


def test_noise_in_quiet_bins_is_no_error_and_the_same_in_loud_ones_is() -> None:
    (_, spectrum), *_ = [pair for pair in SPECTRA if pair[0] == "frontend/speech_feat*"]
    recorded = np.full((2, 80), -11.0)  # near the floor
    recorded[:, :10] = 0.0
    quiet, loud = recorded.copy(), recorded.copy()
    quiet[1, 40] += 6e-4
    loud[1, 4] += 6e-4
    tolerance = next(value for pattern, value in TOLERANCES if pattern == "frontend/speech_feat*")
    assert spectrum.error(recorded, quiet) < tolerance < spectrum.error(recorded, loud)
    quiet[1, 40] = -7.0  # a bin that should be silent is heard
    assert spectrum.error(recorded, quiet) > tolerance
