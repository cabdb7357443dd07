"""The committed Triton configurations match the contracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from cosyserve import repository
from cosyserve.config import ModelConfig
from cosyserve.contracts import FRONTEND, MODELS, TTS, UPSTREAM, Model, Scheduling
from cosyserve.errors import ServeError
from cosyserve.limits import MAX_LLM_SLOTS, MAX_SEQUENCES, MAX_STREAMS, SEQUENCE_IDLE_SECONDS
from cosyserve.runtimes.buckets import BATCH
from cosyserve.settings import Settings

REPOSITORY = Path(__file__).parents[2] / "model_repository"
DATA = Path(__file__).parents[1] / "data"
BY_NAME = {model.name: model for model in MODELS}
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
every_profile = pytest.mark.parametrize("profile", repository.PROFILES)


def rendered(model: Model, profile: str) -> Any:
    text = repository.render(model, profile, repository.SAMPLE_RATE)
    return text_format.Parse(text, pb.ModelConfig())


def recorded(version: int) -> ModelConfig:
    """Return the configuration that `prepare` writes to the manifest of a version's weights."""
    pytest.importorskip("torch", reason="torch is not installed")
    from cosyserve_build.bundles.bundle import read

    return read(DATA / f"cosyvoice{version}-tiny" / "bundle").config


def parameters(model: Model, profile: str) -> dict[str, str]:
    """Parameters that are settings."""
    found = {name: value.string_value for name, value in rendered(model, profile).parameters.items()}
    return {name: value for name, value in found.items() if name != "sample_rate"}


def test_no_configuration_is_stale() -> None:
    for path, text in repository.paths(REPOSITORY).items():
        assert path.read_text("utf-8") == text, f"{path}: run `make configs`"


def test_the_source_holds_no_other_configuration() -> None:
    assert set(REPOSITORY.rglob("*.pbtxt")) == set(repository.paths(REPOSITORY))


@every_profile
@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_repository_is_rendered_for_weights_and_profile(version: int, profile: str, tmp_path: Path) -> None:
    config = recorded(version)
    folder = tmp_path / "models"
    repository.write(folder, profile, config)
    alias = [f"cosyvoice{version}"] if version > 1 else []
    expected = {"tts", "voices", "frontend", "llm", "flow", "hift", "token2wav", *alias}
    assert {path.name for path in folder.iterdir()} == expected
    for model in repository.served(config):
        text = (folder / model.name / "config.pbtxt").read_text("utf-8")
        assert text == repository.render(model, profile, config.sample_rate)
        assert (folder / model.name / "1" / "model.py").is_file() is (model.scheduling is not Scheduling.ENSEMBLE)
    told = text_format.Parse((folder / "tts" / "config.pbtxt").read_text("utf-8"), pb.ModelConfig())
    assert told.parameters["sample_rate"].string_value == str(config.sample_rate)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ServeError, match="is not an empty folder$"):
        repository.write(tmp_path, "cpu", recorded(2))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@every_profile
def test_no_inner_model_is_decoupled(profile: str) -> None:
    """Reading a decoupled model from inside another corrupts memory: see `cosyserve.triton_defects`."""
    decoupled = {model.name for model in MODELS if rendered(model, profile).model_transaction_policy.decoupled}
    assert decoupled == {TTS.name, *(model.name for model in UPSTREAM)}


@every_profile
@every_model
def test_tensors_are_the_contract_s(model: Model, profile: str) -> None:
    config = rendered(model, profile)
    assert config.name == model.name

    def triton(dtype: str) -> int:
        return int(pb.DataType.Value("TYPE_STRING" if dtype == "BYTES" else f"TYPE_{dtype}"))

    found = [(i.name, i.data_type, tuple(i.dims), i.optional) for i in config.input]
    assert found == [(t.name, triton(t.dtype), t.dims, t.optional) for t in model.inputs]
    assert [(o.name, o.data_type, tuple(o.dims)) for o in config.output] == [
        (t.name, triton(t.dtype), t.dims) for t in model.outputs
    ]


@every_profile
@every_model
def test_scheduling_is_the_contract_s(model: Model, profile: str) -> None:
    config = rendered(model, profile)
    sequence = model.scheduling is Scheduling.SEQUENCE
    ensemble = model.scheduling is Scheduling.ENSEMBLE
    single = model.scheduling is Scheduling.SINGLE
    assert config.model_transaction_policy.decoupled is (single or model.scheduling is Scheduling.DECOUPLED)
    assert config.HasField("sequence_batching") is sequence
    assert config.HasField("ensemble_scheduling") is ensemble
    # Upstream's clients send a batch dimension of one.
    assert config.max_batch_size == (1 if single else MAX_SEQUENCES if sequence or ensemble else 0)
    assert (config.backend, config.platform) == (("", "ensemble") if ensemble else ("python", ""))
    if sequence:
        assert config.sequence_batching.oldest.max_candidate_sequences >= MAX_SEQUENCES >= 2 * MAX_STREAMS
        assert config.sequence_batching.max_sequence_idle_microseconds == SEQUENCE_IDLE_SECONDS * 1_000_000
        # Steps of different sequences share a batch although their lengths differ.
        assert {i.name for i in config.input if i.allow_ragged_batch} == {t.name for t in model.inputs if -1 in t.dims}


@every_model
def test_profiles_differ_in_where_and_how_networks_run(model: Model) -> None:
    gpu, cpu = rendered(model, "gpu"), rendered(model, "cpu")
    if model.scheduling is not Scheduling.ENSEMBLE:
        kinds = pb.ModelInstanceGroup.Kind
        assert [(g.kind, g.count) for g in cpu.instance_group] == [(kinds.KIND_CPU, 1)]
        on_gpu = kinds.KIND_GPU if model.computes else kinds.KIND_CPU
        assert [(g.kind, g.count) for g in gpu.instance_group] == [(on_gpu, 1)]
    devices = [parameters(model, profile).get("device") for profile in ("gpu", "cpu")]
    networks = model.computes and model.scheduling is not Scheduling.ENSEMBLE
    # The frontend reads prompts on the GPU, in onnxruntime.
    assert devices == (["cuda", "cpu"] if networks else ["cuda", None] if model is FRONTEND else [None, None])
    for config in (gpu, cpu):
        config.ClearField("instance_group")
        for name in ("device", "runtime", "precision", "llm_precision", "concurrency", "flow_cache_mib", "first_hop"):
            config.parameters.pop(name, None)
    assert gpu == cpu


@pytest.mark.parametrize(("name", "precision"), [("llm", "fp32"), ("flow", "fp16"), ("hift", "fp32")])
def test_a_gpu_runs_torch_and_batches_that_its_ladder_holds(name: str, precision: str) -> None:
    settings = Settings.read(parameters(BY_NAME[name], "gpu"), {})
    found = settings.llm_precision if name == "llm" else settings.precision
    assert (settings.device, settings.runtime, found) == ("cuda", "torch", precision)
    assert settings.concurrency == BATCH[-1] or name == "llm"


def test_a_gpu_speaks_sooner() -> None:
    assert int(parameters(TTS, "gpu")["first_hop"]) < int(parameters(TTS, "cpu")["first_hop"])


@every_profile
@every_model
def test_parameters_are_settings_within_the_limits(model: Model, profile: str) -> None:
    read = Settings.read(parameters(model, profile), {})
    assert (read.max_streams, read.llm_slots) == (MAX_STREAMS, MAX_LLM_SLOTS)


@every_model
def test_the_cpu_s_parameters_repeat_the_defaults(model: Model) -> None:
    given = parameters(model, "cpu")
    read, default = Settings.read(given, {}), Settings()
    for name in set(given) - {"threads", "concurrency"}:
        assert getattr(read, name) == getattr(default, name)


@every_profile
@pytest.mark.parametrize("model", [m for m in MODELS if m.scheduling is Scheduling.ENSEMBLE], ids=lambda m: m.name)
def test_the_wiring_of_ensembles_closes(model: Model, profile: str) -> None:
    known = {tensor.name: tensor for tensor in model.inputs}
    used: set[str] = set()
    for step in rendered(model, profile).ensemble_scheduling.step:
        inner = BY_NAME[step.model_name]
        assert step.model_version == -1
        for inside, outside in step.input_map.items():
            wanted, given = inner.input(inside), known[outside]
            assert (given.dtype, given.dims) == (wanted.dtype, wanted.dims), inside
            assert wanted.optional or not given.optional, inside
            used.add(outside)
        assert {t.name for t in inner.inputs if not t.optional} <= set(step.input_map)
        for inside, outside in step.output_map.items():
            assert outside not in known
            known[outside] = inner.output(inside)
    for output in model.outputs:
        assert (known[output.name].dtype, known[output.name].dims) == (output.dtype, output.dims)
    assert {t.name for t in model.inputs} <= used


def test_names_are_unique_and_looked_up() -> None:
    assert len(BY_NAME) == len(MODELS)
    for model in MODELS:
        for tensors, find in ((model.inputs, model.input), (model.outputs, model.output)):
            assert [find(tensor.name) for tensor in tensors] == list(tensors)
            assert len({tensor.name for tensor in tensors}) == len(tensors)
            with pytest.raises(KeyError):
                find("nothing")


def test_every_input_of_tts_reaches_a_stage() -> None:
    frontend = {tensor.name: tensor for tensor in BY_NAME["frontend"].inputs}
    for tensor in TTS.inputs:
        if tensor.name not in ("seed", "stream", "timestamps", "flush"):
            assert frontend[tensor.name] == tensor
    # The frontend's outputs are inputs of the later stages.
    takers = {t.name: t for name in ("llm", "token2wav") for t in BY_NAME[name].inputs}
    for tensor in BY_NAME["frontend"].outputs:
        if tensor.name not in ("segment_lengths", "segment_texts"):
            assert (takers[tensor.name].dtype, takers[tensor.name].dims) == (tensor.dtype, tensor.dims)
