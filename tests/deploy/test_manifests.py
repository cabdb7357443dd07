"""The manifests: valid for Kubernetes, and consistent with the code that they run."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import drain
import jsonschema
import kubernetes_validate
import probe
import pytest
import typer
from manifests import DEPLOY, OVERLAYS, Manifest, container, documents, environment, find, gibibytes, pod, rendered

from cosyserve.cli import app
from cosyserve.limits import READY_SECONDS, STOP_SECONDS
from cosyserve.serve import free_port
from cosyserve.settings import Settings
from cosyserve_build.gpu_memory import PROMPT_FRAMES, memory
from cosyserve_client.wire import STREAM_TIMEOUT_SECONDS
from cosyserve_gateway import limits
from cosyserve_gateway.app import create_app
from cosyserve_gateway.cli import app as gateway_app
from cosyserve_gateway.settings import Settings as GatewaySettings

KUBERNETES = "1.35"
"""First release with image volumes enabled by default."""

SERVER, GATEWAY = "cosyserve-server", "cosyserve-gateway"
SCHEMAS = {path.stem: json.loads(path.read_text("utf-8")) for path in (DEPLOY / "schemas").iterdir()}

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def check(manifest: Manifest) -> None:
    """Raise for fields that an API server would refuse or drop, and for unknown kinds."""
    if schema := SCHEMAS.get(manifest["kind"]):
        jsonschema.validate(manifest, schema)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@each_overlay
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders, and is not installed")
def test_what_is_committed_is_what_the_overlays_render(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(DEPLOY / "overlays" / overlay)]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert made.stderr == ""
    assert documents(made.stdout) == rendered(overlay), "run `make manifests`"


@each_overlay
def test_every_manifest_is_valid(overlay: str) -> None:
    for manifest in rendered(overlay):
        check(manifest)


def test_the_claim_and_its_loader_are_valid() -> None:
    for manifest in documents((DEPLOY / "weights.yaml").read_text("utf-8")):
        check(manifest)


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("Deployment", SERVER, ("spec", "replica"), 2),
        ("Service", SERVER, ("spec", "ports", 0, "port"), "8001"),
        ("ScaledObject", SERVER, ("spec", "triggers", 0, "metadata", "treshold"), "1"),
        ("PodMonitor", SERVER, ("spec", "podMetricsEndpoints", 0, "port"), 8002),
        ("PrometheusRule", "cosyserve", ("spec", "groups", 0, "rules", 0, "alert"), "both"),
    ],
)
def test_a_wrong_field_of_a_manifest_is_refused(kind: str, name: str, path: tuple[Any, ...], value: Any) -> None:
    manifest = find(rendered("gpu"), kind, name)
    place: Any = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


def test_an_unknown_kind_of_manifest_is_refused() -> None:
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        check({"apiVersion": "autoscaling/v2beta2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "old"}})


@each_overlay
def test_pods_are_confined(overlay: str) -> None:
    for name in (SERVER, GATEWAY):
        specification, only = pod(rendered(overlay), name), container(rendered(overlay), name)
        assert specification["automountServiceAccountToken"] is False
        assert specification["securityContext"]["runAsNonRoot"] is True
        assert specification["securityContext"]["runAsUser"] > 0
        assert specification["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in only["resources"]["limits"]
        # Kubernetes would set COSYSERVE_GATEWAY_PORT=tcp://... after the service, which the gateway takes for its port.
        assert specification["enableServiceLinks"] is False


@each_overlay
def test_the_server_starts_with_options_that_it_has(overlay: str) -> None:
    only = container(rendered(overlay), SERVER)
    options = parse(app, ["serve", "--weights", "/weights", *only["args"]])
    assert options["host"] == "0.0.0.0"
    assert options["profile"] == overlay.partition("-")[0]
    ports = {port["name"]: port["containerPort"] for port in only["ports"]}
    assert ports == {"grpc": options["grpc_port"], "metrics": options["metrics_port"]}
    settings = {name.removeprefix("COSYSERVE_").lower() for name in environment(only)}
    assert settings <= {field.name for field in fields(Settings)}
    Settings.read({}, environment(only))


@each_overlay
def test_the_gateway_starts_with_options_that_it_has(overlay: str) -> None:
    manifests = rendered(overlay)
    only = container(manifests, GATEWAY)
    options = parse(gateway_app, only["args"])
    assert options["host"] == "0.0.0.0"
    assert {f"COSYSERVE_GATEWAY_{name.upper()}" for name in options} >= set(environment(only))
    service = find(manifests, "Service", SERVER)
    assert options["url"] == f"dns:///{SERVER}:{service['spec']['ports'][0]['port']}"
    assert service["spec"]["clusterIP"] == "None"
    (port,) = only["ports"]
    assert port == {"name": "http", "containerPort": options["port"]}


def parse(application: typer.Typer, arguments: list[str]) -> dict[str, Any]:
    """Parse a command line, with its subcommand; raise for an unknown option."""
    command: Any = typer.main.get_command(application)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return dict(command.make_context("", list(arguments)).params)


@each_overlay
def test_ports_and_selectors_match(overlay: str) -> None:
    manifests = rendered(overlay)
    ports = {n: {p["name"]: p["containerPort"] for p in container(manifests, n)["ports"]} for n in (SERVER, GATEWAY)}
    for name, named in ports.items():
        label = {"app.kubernetes.io/name": name}
        deployment, service = find(manifests, "Deployment", name), find(manifests, "Service", name)
        assert deployment["spec"]["template"]["metadata"]["labels"].items() >= label.items()
        assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == label
        assert find(manifests, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"] == label
        for port in service["spec"]["ports"]:
            assert named[port["targetPort"]] == port["port"]
        policy = find(manifests, "NetworkPolicy", name)["spec"]
        assert policy["podSelector"]["matchLabels"] == label
        allowed = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        assert allowed == set(named.values())
    (egress, _) = find(manifests, "NetworkPolicy", GATEWAY)["spec"]["egress"]
    assert egress["ports"] == [{"port": ports[SERVER]["grpc"]}]
    assert find(manifests, "NetworkPolicy", "default-deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


@each_overlay
def test_probes_use_paths_and_commands_that_exist(overlay: str) -> None:
    server, gateway = (container(rendered(overlay), name) for name in (SERVER, GATEWAY))
    for name in ("startupProbe", "readinessProbe"):
        assert server[name]["httpGet"] == {"path": "/metrics", "port": "metrics"}
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] > READY_SECONDS
    assert asyncio.run(status(gateway["readinessProbe"]["httpGet"]["path"])) >= 500  # no server runs here
    assert asyncio.run(status(gateway["livenessProbe"]["httpGet"]["path"])) == 200
    python, script, *arguments = server["livenessProbe"]["exec"]["command"]
    assert (python, script) == ("python3", "/opt/cosyserve/probe.py")
    seconds = probe.parser().parse_args(arguments).seconds
    assert seconds < server["livenessProbe"]["timeoutSeconds"] < server["livenessProbe"]["periodSeconds"]


async def status(path: str, method: str = "GET") -> int:
    """Return the status of a gateway's answer to a request without a body."""
    sent: list[Any] = []
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "client": ("::1", 1)}

    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return body.pop() if body else await asyncio.Event().wait()  # the client stays connected until the answer

    async def send(message: Any) -> None:
        sent.append(message)

    application: Any = create_app(GatewaySettings(url=f"127.0.0.1:{free_port()}"))
    await application(scope, receive, send)
    return int(sent[0]["status"])


@each_overlay
def test_grace_is_longer_than_drain_and_drain_than_any_stream(overlay: str) -> None:
    manifests = rendered(overlay)
    python, script, *arguments = container(manifests, SERVER)["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, script) == ("python3", "/opt/cosyserve/drain.py")
    seconds = drain.parser().parse_args(arguments).seconds
    assert seconds > STREAM_TIMEOUT_SECONDS + (drain.QUIET_LOOKS + 1) * drain.LOOK_SECONDS
    grace = pod(manifests, SERVER)["terminationGracePeriodSeconds"]
    assert grace > seconds + STOP_SECONDS
    assert find(manifests, "Deployment", SERVER)["spec"]["progressDeadlineSeconds"] > grace + READY_SECONDS
    leaving = container(manifests, GATEWAY)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(manifests, GATEWAY)["terminationGracePeriodSeconds"] > leaving + limits.SHUTDOWN_SECONDS


@each_overlay
def test_memory_holds_the_flow_s_cache_and_shared_memory(overlay: str) -> None:
    manifests = rendered(overlay)
    only, volumes = container(manifests, SERVER), {v["name"]: v for v in pod(manifests, SERVER)["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in only["volumeMounts"]}
    assert mounts["/weights"]["readOnly"] is True
    shared = volumes[mounts["/dev/shm"]["name"]]["emptyDir"]
    assert shared["medium"] == "Memory"
    memory, cache = gibibytes(shared["sizeLimit"]), 0.0
    if overlay == "cpu":  # on a GPU the cache is in the GPU's memory
        cache = int(environment(only)["COSYSERVE_FLOW_CACHE_MIB"]) / 1024
    assert gibibytes(only["resources"]["limits"]["memory"]) > memory + cache
    weights = volumes[mounts["/weights"]["name"]]
    assert ("persistentVolumeClaim" in weights) == (overlay == "cpu")
    assert ("image" in weights) == (overlay != "cpu")


@pytest.mark.parametrize("overlay", ["gpu", "gpu-mig"])
def test_it_scales_before_a_pod_is_full(overlay: str) -> None:
    manifests = rendered(overlay)
    scaled = find(manifests, "ScaledObject", SERVER)["spec"]
    assert find(manifests, "Deployment", scaled["scaleTargetRef"]["name"])
    assert scaled["minReplicaCount"] >= 2
    streams = float(scaled["triggers"][0]["metadata"]["threshold"])
    assert 0.6 <= streams / int(environment(container(manifests, SERVER))["COSYSERVE_MAX_STREAMS"]) <= 0.7
    for name, port in ((SERVER, "metrics"), (GATEWAY, "http")):
        monitor = find(manifests, "PodMonitor", name)["spec"]
        assert monitor["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}
        assert [(each["port"], each["path"]) for each in monitor["podMetricsEndpoints"]] == [(port, "/metrics")]


@pytest.mark.parametrize(("overlay", "card"), [("gpu", 80), ("gpu-mig", 40)])
@pytest.mark.parametrize("version", [2, 3])
def test_the_memory_of_the_gpu_holds_all_streams(overlay: str, card: int, version: int) -> None:
    given = environment(container(rendered(overlay), SERVER))
    streams = int(given["COSYSERVE_MAX_STREAMS"])
    assert given["COSYSERVE_LLM_SLOTS"] == str(streams)
    assert "COSYSERVE_FLOW_CACHE_MIB" not in given  # what the card can spare
    assert streams <= memory(version, card, streams).streams(PROMPT_FRAMES)


@each_overlay
def test_images_have_fixed_tags(overlay: str) -> None:
    manifests = rendered(overlay)
    images = [container(manifests, name)["image"] for name in (SERVER, GATEWAY)]
    images += [volume["image"]["reference"] for volume in pod(manifests, SERVER)["volumes"] if "image" in volume]
    assert all(re.fullmatch(r"cosyserve-[a-z]+:(?!latest)[\w.-]+|.*@sha256:[0-9a-f]{64}", image) for image in images)


def test_the_entrypoint_s_paths_are_those_of_the_image() -> None:
    dockerfiles = (Path(__file__).parents[2] / "docker" / name for name in ("Dockerfile.cpu", "Dockerfile.gpu"))
    for text in (path.read_text("utf-8") for path in dockerfiles):
        assert "COPY docker/entrypoint.py docker/probe.py docker/drain.py /opt/cosyserve/" in text
        assert "COSYSERVE_WEIGHTS=/weights" in text
        assert "COSYSERVE_DRAIN_FILE=/tmp/draining" in text
