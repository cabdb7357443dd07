"""Static checks of the Dockerfiles and the compose file, without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import drain
import pytest
import yaml
from manifests import DEPLOY, ROOT

DOCKER = ROOT / "docker"
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
IGNORE = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]

each_file = pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])


def instructions(name: str) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / name).read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    return [(word, " ".join(rest.split())) for word, _, rest in (s.partition(" ") for s in text.splitlines() if s)]


def stages(name: str) -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage, FROM first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions(name):
        if word == "FROM":
            stage = found.setdefault(rest.partition(" AS ")[2], [])
        if found:
            stage.append((word, rest))
    return found


def sent(path: str) -> bool:
    """Return whether a file is in the build context: the last pattern that matches it or a parent folder decides."""
    above = [path, *map(str, Path(path).parents)]
    fitting = [line for line in IGNORE if line and line[0] != "#" and any(_fits(line.lstrip("!"), p) for p in above)]
    return not fitting or fitting[-1].startswith("!")


def _fits(pattern: str, path: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatchcase(Path(path).name, pattern[3:])
    return len(Path(pattern).parts) == len(Path(path).parts) and fnmatchcase(path, pattern)


def copied(name: str) -> set[str]:
    """Files of the repository that the image's stages copy; every source must give some."""
    files: set[str] = set()
    for word, rest in instructions(name):
        if word == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                given = {f for f in TRACKED if (f == source or f.startswith(f"{source}/")) and sent(f)}
                assert given, f"{source} is not in the build context"
                files |= given
    return files


@each_file
def test_bases_are_arguments_that_an_operator_pins(name: str) -> None:
    arguments = dict(rest.split("=") for word, rest in instructions(name) if word == "ARG")
    for stage in stages(name).values():
        base = stage[0][1].partition(" AS ")[0]
        if base not in stages(name):
            default = arguments[base.removeprefix("${").removesuffix("}")]
            assert re.search(r":[\w.-]*\d[\w.-]*$", default), f"{default} names no release"


@each_file
def test_copied_files_exist(name: str) -> None:
    assert copied(name)
    assert not [word for word, _ in instructions(name) if word == "ADD"]


@each_file
def test_final_stages_run_as_a_user_and_get_the_signals(name: str) -> None:
    for stage in ("server", "gateway") if name == "Dockerfile.cpu" else ("server",):
        words = dict(stages(name)[stage])
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", words["USER"])
        assert [word for word, _ in stages(name)[stage]].index("USER") > 0
        assert json.loads(words["ENTRYPOINT"])
        assert "0.0.0.0" in json.loads(words["CMD"])
        if stage == "server":
            assert json.loads(words["HEALTHCHECK"].partition("CMD ")[2])[-1] == "/opt/cosyserve/probe.py"


@each_file
def test_what_is_installed_is_an_extra(name: str) -> None:
    runs = [rest for word, rest in instructions(name) if word == "RUN" and "pip" in rest]
    named = [extra for run in runs for extras in re.findall(r"\[([\w,-]+)\]", run) for extra in extras.split(",")]
    assert named
    assert set(named) <= set(EXTRAS)


@each_file
def test_what_is_copied_builds_the_wheel(name: str, tmp_path: Path) -> None:
    for path in copied(name):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"cosyserve/serve.py", "cosyserve_client/sync.py", "cosyserve/model_repository/tts/config.pbtxt"} <= held
    assert {f"cosyserve/{f}" for f in TRACKED if f.startswith("model_repository/") and f.endswith("model.py")} <= held


def test_nothing_that_is_large_or_private_is_sent() -> None:
    for path in (".git/config", ".venv/bin/python", "tests/conftest.py", "demo/weights.tar.xz", "docker/compose.yaml"):
        assert not sent(path)


def test_compose_mounts_files_that_are_there_and_confines_what_it_runs() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))["services"]
    assert set(services) == {"server", "gateway", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "latest" not in service["image"]
        for volume in service.get("volumes", []):
            if volume.startswith("."):
                assert (DOCKER / volume.partition(":")[0]).is_file(), volume
        if "build" in service:
            assert service["build"]["target"] in stages(Path(service["build"]["dockerfile"]).name)
        assert name in ("prometheus", "grafana") or "build" in service
    (hook,) = services["server"]["pre_stop"]
    python, script, *arguments = hook["command"]
    assert (python, script) == ("python3", "/opt/cosyserve/drain.py")
    assert drain.parser().parse_args(arguments).seconds > 600


def test_prometheus_and_grafana_find_their_files() -> None:
    scraped = yaml.safe_load((DOCKER / "prometheus.yaml").read_text("utf-8"))["scrape_configs"]
    targets = [target for job in scraped for each in job["static_configs"] for target in each["targets"]]
    assert targets == ["server:8002", "gateway:8080"]
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    (provider,) = yaml.safe_load((DOCKER / "grafana" / "dashboards.yaml").read_text("utf-8"))["providers"]
    mounted = [volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"]]
    (dashboard,) = (source for source, place in mounted if place.startswith(f"{provider['options']['path']}/"))
    assert (DOCKER / dashboard).resolve() == DEPLOY / "components" / "monitoring" / "dashboard.json"
