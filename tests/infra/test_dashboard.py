"""The dashboard: complete enough for Grafana to take it, and every metric in it is one that somebody exports."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import ray.dashboard
import yaml

from pipeline.metrics import MEASURES
from pipeline.records import WITH_TEXT

INFRA = Path(__file__).parents[2] / "infra"
DASHBOARD: dict[str, Any] = json.loads((INFRA / "grafana" / "earwitness.json").read_text())
COLUMNS = 24  # of Grafana's grid


def queries() -> list[str]:
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return asked + [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]


def metrics() -> set[str]:
    return {name for query in queries() for name in re.findall(r"\bray_\w+", query)}


def exported_by_ray() -> set[str]:
    """What Ray's own dashboards are made of: the nearest to a list that it publishes."""
    folder = Path(ray.dashboard.__file__).parent / "modules" / "metrics" / "dashboards"
    return {name for path in folder.glob("*.py") for name in re.findall(r"\bray_\w+", path.read_text())}


def test_every_metric_is_exported_and_every_one_of_ours_is_shown() -> None:
    ours = {measure.exported for measure in MEASURES}
    assert ours <= metrics() <= ours | exported_by_ray()
    assert not ours & exported_by_ray()


def test_a_metric_that_nobody_exports_would_be_found() -> None:
    assert "ray_node_mem_used" in exported_by_ray() and "ray_node_mem_usedd" not in exported_by_ray()


def test_labels_are_those_of_the_metrics() -> None:
    labels = {measure.exported: {*measure.labels, "SessionName"} for measure in MEASURES}
    for query in queries():
        for name, matchers in re.findall(r"(ray_earwitness_\w+)\{(.*?)\}", query):
            assert set(re.findall(r"(\w+)\s*[=!]~?\"", matchers)) <= labels[name]
        for grouped in re.findall(r"by \((\w+)\) \((?:rate|increase)\((ray_earwitness_\w+)", query):
            assert grouped[0] in labels[grouped[1]]


def test_failures_are_whatever_has_no_text() -> None:
    (pattern,) = {found for query in queries() for found in re.findall(r'status!~"(.*?)"', query)}
    assert pattern.split("|") == sorted(WITH_TEXT, key=["ok", "damaged", "truncated"].index)


def test_grafana_finds_what_it_needs() -> None:
    assert DASHBOARD["uid"] and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries") and panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["refId"] and target["legendFormat"] for target in panel["targets"])


def test_the_source_of_all_data_is_a_variable() -> None:
    (source, session) = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert session["datasource"] == chosen
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"] == chosen and all(target["datasource"] == chosen for target in panel["targets"])
    assert all(f'SessionName=~"${session["name"]}"' in query for query in queries()[:-1])


def test_panels_fill_the_grid_and_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS and place["h"] > 0 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    assert sum(place["w"] * place["h"] for place in places) == COLUMNS * max(p["y"] + p["h"] for p in places)


def test_brackets_of_the_queries_close() -> None:
    for query in queries():
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), query


def test_prometheus_reads_where_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (file,) = job["file_sd_configs"][0]["files"]
    assert Path(file).name == PROMETHEUS_SERVICE_DISCOVERY_FILE
