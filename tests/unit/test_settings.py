"""Settings from Triton parameters and the environment."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from cosyserve import limits
from cosyserve.errors import WeightsError
from cosyserve.settings import Settings


def test_without_parameters_the_defaults_hold() -> None:
    settings = Settings.read({}, {})
    assert settings == Settings()
    assert (settings.max_streams, settings.llm_slots) == (limits.MAX_STREAMS, limits.MAX_LLM_SLOTS)
    assert settings.device == "cpu"


def test_parameters_set_fields() -> None:
    settings = Settings.read({"threads": "3", "device": "cuda", "weights": "/w"}, {})
    assert settings == Settings(threads=3, device="cuda", weights="/w")
    assert settings.folder == Path("/w")


@pytest.mark.parametrize("name", [f.name for f in fields(Settings)])
def test_the_environment_overrides_every_parameter(name: str) -> None:
    words = {
        "device": ("cpu", "cuda"),
        "runtime": ("onnx", "tensorrt"),
        "llm_runtime": ("", "gguf"),
        "precision": ("bf16", "fp16"),
        "llm_precision": ("bf16", "fp16"),
        "graphs": ("on", "off"),
        "stage_timeout": ("70", "80"),
        "otlp_endpoint": ("http://one", "https://other"),
    }
    parameter, override = words.get(name, ("7", "8"))
    needed = {"runtime": "torch"} if name in ("precision", "llm_precision") else {}
    settings = Settings.read({**needed, name: parameter}, {f"COSYSERVE_{name.upper()}": override})
    assert str(getattr(settings, name)) == override


def test_an_empty_environment_variable_changes_nothing() -> None:
    assert Settings.read({"threads": "3"}, {"COSYSERVE_THREADS": ""}).threads == 3


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(WeightsError, match="unknown model parameters: slots, thread$"):
        Settings.read({"thread": "1", "slots": "2", "threads": "1"}, {})


@pytest.mark.parametrize("text", ["two", "1.5", " ", "1k"])
def test_a_value_that_is_not_a_number_is_named(text: str) -> None:
    with pytest.raises(WeightsError, match=f"^setting threads: '{text}' is not an integer$"):
        Settings.read({"threads": text}, {})
    with pytest.raises(WeightsError, match="^setting threads: "):
        Settings.read({}, {"COSYSERVE_THREADS": text})


@pytest.mark.parametrize("name", ["threads", "max_streams", "llm_slots", "first_hop", "max_hop", "concurrency"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_count_below_one_is_refused(name: str, value: str) -> None:
    with pytest.raises(WeightsError, match=f"^setting {name}: must be at least 1$"):
        Settings.read({name: value}, {})


@pytest.mark.parametrize("name", ["flow_window", "flow_cache_mib"])
def test_a_size_that_may_be_left_open_is_not_negative(name: str) -> None:
    assert getattr(Settings.read({name: "0"}, {}), name) == 0
    with pytest.raises(WeightsError, match=f"^setting {name}: must be at least 0$"):
        Settings.read({name: "-1"}, {})


def test_the_language_model_has_a_precision_of_its_own() -> None:
    settings = Settings.read({"runtime": "torch"}, {"COSYSERVE_PRECISION": "fp16"})
    assert (settings.precision, settings.llm_precision) == ("fp16", "fp32")
    with pytest.raises(WeightsError, match="^setting llm_precision: bf16 needs another runtime; onnx runs in fp32$"):
        Settings.read({"llm_precision": "bf16"}, {})
    with pytest.raises(WeightsError, match="^setting llm_precision: fp16 needs another runtime; gguf runs in fp32$"):
        Settings.read({"runtime": "torch", "llm_runtime": "gguf", "llm_precision": "fp16"}, {})


def test_more_streams_than_sequences_are_refused() -> None:
    with pytest.raises(WeightsError, match=f"^setting max_streams: at most {limits.MAX_STREAMS}$"):
        Settings.read({"max_streams": str(limits.MAX_STREAMS + 1)}, {})


def test_a_session_may_not_be_idle_for_longer_than_the_stages_wait() -> None:
    for given in ({"session_idle": "240"}, {"stage_timeout": "30"}):
        with pytest.raises(WeightsError, match="^setting session_idle: must be below stage_timeout, which is "):
            Settings.read(given, {})


def test_a_stage_timeout_is_below_the_idle_time_of_sequences() -> None:
    with pytest.raises(WeightsError, match=f"^setting stage_timeout: at most {limits.MAX_STAGE_TIMEOUT_SECONDS}$"):
        Settings.read({"stage_timeout": str(limits.MAX_STAGE_TIMEOUT_SECONDS + 1)}, {})
    assert limits.MAX_STAGE_TIMEOUT_SECONDS < limits.SEQUENCE_IDLE_SECONDS


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(WeightsError, match="^setting device: 'tpu', must be one of cpu, cuda$"):
        Settings.read({"device": "tpu"}, {})


def test_without_weights_the_error_says_how_to_get_them() -> None:
    with pytest.raises(WeightsError, match="COSYSERVE_WEIGHTS.*cosyserve-build prepare"):
        _ = Settings().folder


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("runtime", "jax", "onnx, torch, tensorrt"),
        ("llm_runtime", "onnx", "gguf"),
        ("precision", "int8", "fp32, bf16, fp16"),
    ],
)
def test_an_unknown_runtime_or_precision_is_refused(name: str, value: str, choices: str) -> None:
    with pytest.raises(WeightsError, match=f"^setting {name}: '{value}', must be one of {choices}$"):
        Settings.read({name: value}, {})


def test_a_precision_that_the_graphs_do_not_have_is_refused() -> None:
    for runtime in ("torch", "tensorrt"):
        assert Settings(runtime=runtime, precision="bf16").precision == "bf16"
    with pytest.raises(WeightsError, match="^setting precision: bf16 needs another runtime; onnx runs in fp32$"):
        Settings(precision="bf16")
