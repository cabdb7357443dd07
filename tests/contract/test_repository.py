"""The shape of the repository: thin model files, names written once, serving without torch."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosyserve.contracts import MODELS, TTS, UPSTREAM, Scheduling

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "python_backends" / "cosyserve"
CLIENT = ROOT / "client" / "cosyserve_client"
HANDLED = [model.name for model in MODELS if model.scheduling is not Scheduling.ENSEMBLE]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, also inside functions."""
    for node in ast.walk(parsed(path)):
        yield from named(node)


def named(node: ast.AST) -> Iterator[str]:
    """Modules that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""


def test_every_model_has_a_folder_and_every_folder_a_model() -> None:
    folders = {path.name for path in (ROOT / "model_repository").iterdir() if path.is_dir()}
    assert folders == {model.name for model in MODELS}
    for name in folders:
        assert (ROOT / "model_repository" / name / "1").is_dir()


@pytest.mark.parametrize("name", HANDLED)
def test_a_model_file_names_a_handler_and_no_more(name: str) -> None:
    path = ROOT / "model_repository" / name / "1" / "model.py"
    assert len(path.read_text("utf-8").splitlines()) <= 30
    body = parsed(path).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == ["TritonPythonModel"]
    assert all(isinstance(node, ast.ClassDef | ast.ImportFrom | ast.Import | ast.Expr) for node in body)
    assert {module.partition(".")[0] for module in imports(path)} == {"cosyserve"}


def test_only_the_triton_folder_knows_triton() -> None:
    users = {path.parent for path in LIBRARY.rglob("*.py") if "triton_python_backend_utils" in set(imports(path))}
    assert users == {LIBRARY / "triton"}


def test_nothing_else_loads_the_training_of_the_demo_voice() -> None:
    """Only functions import it, so that a reader can skip the folder."""
    training = ROOT / "build" / "cosyserve_build" / "demo_voice"
    for folder in ("python_backends", "build", "client", "loadtest", "docker"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent != training:
                statements = [ast.unparse(node) for node in _loaded(parsed(path).body) if set(named(node))]
                assert [each for each in statements if re.search(r"cosyserve_build(\.| import )demo_voice", each)] == []


def _loaded(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody", "handlers"):
                yield from _loaded(getattr(node, name, []))


def test_the_pipeline_is_pure() -> None:
    for path in (LIBRARY / "pipeline").glob("*.py"):
        foreign = {module.partition(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
        assert foreign <= {"numpy", "cosyserve"}, path.name
        assert not any(module.startswith("cosyserve.triton") for module in imports(path)), path.name


SERVING = """
import importlib, sys, types
from unittest.mock import MagicMock

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxscript", "yaml", "soundfile"):
            raise ImportError(f"{name} is not installed where only serving is")

sys.meta_path.insert(0, Refuse())
sys.modules["triton_python_backend_utils"] = MagicMock()
"""


def serve_only(code: str, *arguments: str) -> None:
    """Run code in an environment with only the packages for serving on a CPU."""
    done = subprocess.run([sys.executable, "-c", SERVING + code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_guard_below_refuses_torch() -> None:
    with pytest.raises(AssertionError, match="torch is not installed"):
        serve_only("import cosyserve.networks.qwen2")


@pytest.mark.parametrize("name", HANDLED)
def test_model_files_load_without_torch(name: str) -> None:
    code = """
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("model", sys.argv[1])
module = module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.TritonPythonModel()
assert callable(handler.initialize) and callable(handler.execute)
"""
    serve_only(code, str(ROOT / "model_repository" / name / "1" / "model.py"))


HEAVY = ("onnxruntime", "tokenizers", "soxr", "wetext", "safetensors", "kaldi_native_fbank")
COMPUTES = {
    "frontend": "cosyserve.frontend",
    "llm": "cosyserve.llm",
    "flow": "cosyserve.flow",
    "hift": "cosyserve.hift",
}


@pytest.mark.parametrize("name", HANDLED)
def test_a_process_imports_what_it_runs(name: str) -> None:
    """Settings choose the runtime, and with it what is imported to load the networks."""
    code = """
from importlib import import_module
import_module("cosyserve.triton." + sys.argv[1])
loaded = [name for name in sys.argv[2:] if name in sys.modules]
assert not loaded, loaded
"""
    module = "compat" if name in {model.name for model in UPSTREAM} else name
    own = COMPUTES.get(name)
    strangers = {part for part in COMPUTES.values() if part != own}
    if own is None:
        # Voices are files of tensors.
        strangers |= {package for package in HEAVY if (name, package) != ("voices", "safetensors")}
    elif name != "frontend":
        strangers |= {"onnxruntime", "tokenizers", "wetext", "kaldi_native_fbank"}
    serve_only(code, module, *sorted(strangers))


def test_weights_load_and_commands_start_without_torch(weights: Path) -> None:
    code = """
from cosyserve.load.flow import load_flow_networks
from cosyserve.load.frontend import load_frontend
from cosyserve.load.tts import load_chunk_grid
from cosyserve.load.hift import load_hift_networks
from cosyserve.load.llm import load_decoder
from cosyserve.settings import Settings
import cosyserve.cli, cosyserve_client
settings = Settings(weights=sys.argv[1])
for load in (load_chunk_grid, load_frontend, load_decoder, load_flow_networks, load_hift_networks):
    load(settings)
"""
    serve_only(code, str(weights))


def constants(path: Path) -> set[str]:
    return {n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_the_client_builds_requests_from_the_contract() -> None:
    """`audio` names prompt_audio in its errors and `cli` has an argument called text; the rest spells no input.

    (The parameter in which `tts` declares its rate is called sample_rate too.)
    """
    inputs = {tensor.name for tensor in TTS.inputs} - {"sample_rate"}
    for path in CLIENT.glob("*.py"):
        if path.name not in ("audio.py", "cli.py"):
            assert constants(path) & inputs == set(), path.name


def test_the_client_reads_exactly_the_outputs_of_the_contract() -> None:
    outputs = {tensor.name for tensor in TTS.outputs}
    spelt = {
        node.slice.value
        for node in ast.walk(parsed(CLIENT / "wire.py"))
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "outputs"
        and isinstance(node.slice, ast.Constant)
    }
    assert spelt == outputs
    for path in CLIENT.glob("*.py"):
        if path.name != "wire.py":
            assert constants(path) & outputs == set(), path.name


def test_ruff_sees_the_source_under_build(tmp_path: Path) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    assert ruff
    command = [ruff, "check", "--show-files", "--no-cache", str(ROOT)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    sources = [ROOT / "build" / "cosyserve_build" / "prepare.py", LIBRARY / "weights.py", CLIENT / "wire.py"]
    assert {str(path) for path in sources} <= set(shown)


def test_tools_do_not_skip_build(pytestconfig: pytest.Config) -> None:
    assert not {"build", "dist"} & set(pytestconfig.getini("norecursedirs"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    assert "build" not in project["ruff"]["exclude"]
    assert "cosyserve_build" in project["mypy"]["packages"]
    assert "build/cosyserve_build" in project["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_git_does_not_ignore_build() -> None:
    done = subprocess.run(["git", "check-ignore", "-q", "build/cosyserve_build/new_module.py"], cwd=ROOT)
    assert done.returncode == 1


def test_weights_of_another_rate_than_clients_are_promised_are_refused() -> None:
    code = """
from cosyserve.errors import WeightsError
from cosyserve.triton.adapter import check_sample_rate
args = {"model_config": '{"parameters": {"sample_rate": {"string_value": "24000"}}}'}
check_sample_rate(args, 24_000)
check_sample_rate({"model_config": "{}"}, 22_050)
try:
    check_sample_rate(args, 22_050)
except WeightsError as error:
    assert "22050 Hz" in str(error) and "24000 Hz" in str(error), error
else:
    raise AssertionError("not refused")
"""
    serve_only(code)
