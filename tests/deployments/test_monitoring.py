"""The dashboard and the alerts ask for metrics that there are, and leave none of them out."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from console.metrics import METRICS
from store.models import OrderStatus

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
NAMES = {metric.name for metric in METRICS}
LABELS = {metric.name: set(metric.labels) for metric in METRICS}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        (DEPLOYMENTS / "grafana" / "store-checkout.json").read_text()
    )["panels"]
    return found


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((DEPLOYMENTS / "prometheus" / "alerts.yml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def queries() -> list[str]:
    return [
        *(target["expr"] for panel in panels() for target in panel["targets"]),
        *(alert["expr"] for alert in alerts()),
    ]


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {
        name
        for panel in panels()
        for target in panel["targets"]
        for name in re.findall(r"store_\w+", target["expr"])
    }
    assert shown == NAMES


@pytest.mark.parametrize("query", queries())
def test_every_query_names_metrics_and_labels_that_there_are(query: str) -> None:
    named = re.findall(r"(store_\w+)(?:\{([^}]*)\})?", query)
    assert named
    for name, selector in named:
        assert name in NAMES
        for label, value in re.findall(r'(\w+)[!=~]+"([^"]*)"', selector):
            assert label in LABELS[name]
            assert label != "status" or set(value.split("|")) <= set(OrderStatus)


def test_each_panel_has_its_place() -> None:
    places = [panel["gridPos"] for panel in panels()]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    assert len({panel["id"] for panel in panels()}) == len(places)
