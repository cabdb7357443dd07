"""The rendered manifests, and what tests look up in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(folder.name for folder in (DEPLOY / "overlays").iterdir())
Manifest = dict[str, Any]


def documents(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def rendered(overlay: str) -> list[Manifest]:
    return documents((DEPLOY / "rendered" / f"{overlay}.yaml").read_text("utf-8"))


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def pod(manifests: list[Manifest], name: str) -> Manifest:
    """The pod specification of a Deployment."""
    specification: Manifest = find(manifests, "Deployment", name)["spec"]["template"]["spec"]
    return specification


def container(manifests: list[Manifest], name: str) -> Manifest:
    (only,) = pod(manifests, name)["containers"]
    return dict(only)


def environment(container: Manifest) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container.get("env", [])}


def gibibytes(quantity: str) -> float:
    assert quantity.endswith("Gi")
    return float(quantity.removesuffix("Gi"))
