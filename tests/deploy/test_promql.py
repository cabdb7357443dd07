"""Prometheus' own tool accepts our rules, queries and configuration."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from manifests import ROOT
from test_watched import expressions, rules

pytestmark = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")


def check(kind: str, path: Path) -> None:
    done = subprocess.run(["promtool", "check", kind, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_prometheus_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "cosyserve", "rules": rules()}]}))
    check("rules", path)


def test_queries_of_panels_and_scaling_are_valid(tmp_path: Path) -> None:
    asked = [expression.replace("$__rate_interval", "5m") for expression in expressions()]
    records = [{"record": f"asked:{index}", "expr": expression} for index, expression in enumerate(asked)]
    path = tmp_path / "asked.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": records}]}))
    check("rules", path)


def test_the_prometheus_configuration_of_compose_is_valid() -> None:
    check("config", ROOT / "docker" / "prometheus.yaml")
