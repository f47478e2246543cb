"""Every manifest of infra/, as objects: what the tests of the cluster's files share."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

INFRA = Path(__file__).parents[2] / "infra"
KUBERNETES = INFRA / "kubernetes"
RAY_KINDS = ("RayCluster", "RayJob")

Manifest = dict[str, Any]


def objects() -> list[Manifest]:
    """All Kubernetes objects, also those that stand in a ConfigMap."""
    found = [each for path in sorted(KUBERNETES.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]
    kept = [each for each in found if each["kind"] == "ConfigMap"]
    return found + [yaml.safe_load(text) for each in kept for text in each["data"].values()]


def of_kind(*kinds: str) -> list[Manifest]:
    return [each for each in objects() if each["kind"] in kinds]


def title(manifest: Manifest) -> str:
    """What a test is called."""
    names = manifest["metadata"]
    return f"{manifest['kind']}-{names.get('name', names.get('generateName'))}"


def cluster_of(manifest: Manifest) -> dict[str, Any]:
    """The specification of the Ray cluster in a RayCluster or RayJob."""
    spec = manifest["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return cluster


def groups_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The head and the groups of workers of a Ray cluster, by their name."""
    cluster = cluster_of(manifest)
    return {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def pods(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The specification of every pod that comes of an object."""
    if manifest["kind"] in RAY_KINDS:
        yield from (group["template"]["spec"] for group in groups_of(manifest).values())
    elif manifest["kind"] == "CronJob":
        yield manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def service(name: str) -> dict[str, list[str]]:
    """A unit of systemd's: every value of every key, for a key may stand there many times."""
    values: dict[str, list[str]] = {}
    for line in (INFRA / "systemd" / name).read_text().replace("\\\n", " ").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


def nightly_settings() -> dict[str, str]:
    lines = (INFRA / "systemd" / "nightly.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def commands() -> dict[str, list[str]]:
    """Every earwitness command line in infra/, by where it stands: the words behind `earwitness`."""
    found = {title(job): shlex.split(job["spec"]["entrypoint"]) for job in of_kind("RayJob")}
    told = [line for line in (INFRA / "README.md").read_text().splitlines() if line.startswith("earwitness ")]
    found |= {f"README-{number}": shlex.split(line) for number, line in enumerate(told)}
    (started,) = service("earwitness.service")["ExecStart"]
    for name, value in nightly_settings().items():
        started = started.replace(f"${{{name}}}", value).replace(f"${name}", value)
    found["earwitness.service"] = shlex.split(started)
    assert all(Path(words[0]).name == "earwitness" for words in found.values())
    return {place: words[1:] for place, words in found.items()}
