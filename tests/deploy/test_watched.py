"""Every metric that a dashboard, a rule or the autoscaling queries is exported by the code or by Triton."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from manifests import DEPLOY, find, rendered

from cosyserve import metrics
from cosyserve_gateway.metrics import OUTCOMES, Metrics

DASHBOARD = json.loads((DEPLOY / "components" / "monitoring" / "dashboard.json").read_text("utf-8"))
NAME = re.compile(r"\b(?:cosyserve|nv)_\w+")
TRITON = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes"}
"""Metrics that Triton itself exports on a GPU."""
OURS = [each for each in vars(metrics).values() if isinstance(each, metrics.Metric)]
RECORDED = re.compile(r"\bcosyserve:[\w:]+")


def rules() -> list[dict[str, Any]]:
    (group,) = find(rendered("gpu"), "PrometheusRule", "cosyserve")["spec"]["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    triggers = find(rendered("gpu"), "ScaledObject", "cosyserve-server")["spec"]["triggers"]
    return [*panels, *(rule["expr"] for rule in rules()), *(trigger["metadata"]["query"] for trigger in triggers)]


def exported() -> set[str]:
    """Names of the metrics of server and gateway, as Prometheus stores them."""
    server = {series for each in OURS for series in each.series}
    gateway = re.findall(r"^# TYPE (\S+) (\S+)", Metrics().exposition().decode(), re.M)
    histograms = {
        f"{name}{part}" for name, kind in gateway if kind == "histogram" for part in ("_bucket", "_count", "_sum")
    }
    return server | {name for name, _ in gateway} | histograms


def test_every_metric_that_is_watched_is_exported() -> None:
    watched = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(watched) > 10
    assert watched <= exported() | TRITON
    assert {name for expression in expressions() for name in RECORDED.findall(expression)} == {
        rule["record"] for rule in rules() if "record" in rule
    }


def test_every_metric_of_the_server_is_on_the_dashboard() -> None:
    shown = {n for panel in DASHBOARD["panels"] for target in panel["targets"] for n in NAME.findall(target["expr"])}
    assert all(shown & set(each.series) for each in OURS)


def test_labels_in_queries_have_existing_values() -> None:
    known: dict[str, set[str]] = {"outcome": set(OUTCOMES)}
    for each in OURS:
        for label, values in each.labels.items():
            known.setdefault(label, set()).update(values)
    asked = [
        pair for expression in expressions() for pair in re.findall(r'\b(reason|outcome|model)!?="(\w+)"', expression)
    ]
    assert asked
    assert all(value in known[label] for label, value in asked)


def test_the_scaling_watches_streams_refusals_and_first_audio() -> None:
    streams, refused, first_audio = find(rendered("gpu"), "ScaledObject", "cosyserve-server")["spec"]["triggers"]
    assert metrics.REFUSED.name in refused["metadata"]["query"]
    # A query without series is an error, on which KEDA keeps the number of pods.
    assert [each["metadata"]["ignoreNullValues"] for each in (streams, refused)] == ["false", "false"]
    assert metrics.ACTIVE_STREAMS.name in streams["metadata"]["query"]
    (recorded,) = (rule for rule in rules() if "record" in rule)
    assert recorded["record"] in first_audio["metadata"]["query"]
    assert "histogram_quantile(0.95" in recorded["expr"]


def test_the_cluster_gets_the_dashboard_that_compose_shows() -> None:
    given = find(rendered("gpu"), "ConfigMap", "cosyserve-dashboard")["data"]["dashboard.json"]
    assert json.loads(given) == DASHBOARD


def test_panels_have_titles_places_and_a_source() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert", rule.get("record")))
def test_expressions_are_balanced(rule: dict[str, Any]) -> None:
    expression = rule["expr"]
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)
