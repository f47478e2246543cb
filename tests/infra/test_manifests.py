"""The files that start earwitness elsewhere: right by the schemas of whoever reads them, and by what our code needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import typer.main
import yaml
from kubernetes_validate import ValidationError

from jobs.cli import app
from jobs.ingest import bounds
from pipeline.config import RunOptions
from pipeline.placement import DECODE_ACTORS_PER_GPU, place
from tests.infra.manifests import (
    INFRA,
    KUBERNETES,
    RAY_KINDS,
    Manifest,
    cluster_of,
    commands,
    groups_of,
    objects,
    of_kind,
    pods,
    service,
    title,
)

KUBERNETES_VERSION = "1.33"  # the oldest that still gets fixes; podFailurePolicy is newer than most of the rest
SCHEMAS = "EARWITNESS_KUBERAY_SCHEMAS"  # a folder with rayclusters.v1.schema.json and the like
OTHERS = ("PodMonitor",)  # of the Prometheus operator, which publishes no schema that a package has
MIN_GRACE_SECONDS = 60

ray_objects = pytest.mark.parametrize("manifest", of_kind(*RAY_KINDS), ids=title)


@pytest.mark.parametrize("manifest", [each for each in objects() if each["kind"] not in RAY_KINDS + OTHERS], ids=title)
def test_core_objects_are_what_kubernetes_takes(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_a_misspelt_field_of_a_core_object_is_found() -> None:
    (job,) = of_kind("CronJob")
    job["spec"]["concurencyPolicy"] = job["spec"].pop("concurrencyPolicy")
    with pytest.raises(ValidationError, match="concurencyPolicy"):
        kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)


# --- KubeRay ------------------------------------------------------------------------------------------------------


def kuberay_schema(kind: str) -> dict[str, Any]:
    """The schema of KubeRay's definition, made strict: in Kubernetes, a name that is unknown is dropped in silence."""
    folder = os.environ.get(SCHEMAS)
    if not folder:
        pytest.skip(f"{SCHEMAS} names no folder with the schemas of KubeRay's definitions, so they are not checked.")
    schema: dict[str, Any] = json.loads((Path(folder) / f"{kind.lower()}s.v1.schema.json").read_text())
    schema["properties"] |= {"metadata": {"type": "object"}}
    return _strict(schema)


def _strict(schema: Any) -> Any:
    if isinstance(schema, dict):
        schema = {name: _strict(part) for name, part in schema.items()}
        if isinstance(schema.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in schema:
            schema.setdefault("additionalProperties", not schema["properties"])
    return [_strict(part) for part in schema] if isinstance(schema, list) else schema


@ray_objects
def test_ray_objects_are_what_kuberay_takes(manifest: Manifest) -> None:
    jsonschema.validate(manifest, kuberay_schema(manifest["kind"]))


def test_a_misspelt_field_of_a_ray_object_is_found() -> None:
    (cluster,) = of_kind("RayCluster")
    cluster["spec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(cluster, kuberay_schema("RayCluster"))


@ray_objects
def test_a_cluster_scales_from_zero_and_the_head_does_no_work(manifest: Manifest) -> None:
    cluster = cluster_of(manifest)
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert groups_of(manifest)["engines"]["minReplicas"] == 0


@ray_objects
def test_engines_are_on_spot_and_drain(manifest: Manifest) -> None:
    groups = groups_of(manifest)
    assert "spot" in groups["engines"]["template"]["spec"]["nodeSelector"].values()
    assert groups["engines"]["template"]["spec"]["tolerations"]
    for name in ("head", "readers"):
        assert "spot" not in groups[name]["template"]["spec"]["nodeSelector"].values()
    for pod in pods(manifest):
        assert pod["terminationGracePeriodSeconds"] >= MIN_GRACE_SECONDS
        assert pod["restartPolicy"] == "Never"
        told = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
        drain = float(told["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert MIN_GRACE_SECONDS / 2 < drain < pod["terminationGracePeriodSeconds"]


def readers_suffice(engines: int, readers: int, cores: int) -> bool:
    """Whether so many machines of readers keep so many engines fed, by the arithmetic of the run itself."""
    placed = place(RunOptions(), {"GPU": engines, "CPU": readers * cores}, engines, 1)
    assert placed.model_actors == engines and placed.model_gpus == 1
    return placed.decode_actors >= 0.9 * DECODE_ACTORS_PER_GPU * engines


@ray_objects
def test_there_are_as_many_readers_as_keep_the_engines_fed(manifest: Manifest) -> None:
    groups = groups_of(manifest)
    engines, readers = groups["engines"], groups["readers"]
    assert engines["rayStartParams"]["num-cpus"] == "0", "else readers would go down with a spot machine"
    cores = int(readers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert readers_suffice(engines["maxReplicas"], readers["maxReplicas"], cores)
    if manifest["kind"] == "RayJob":  # it begins when all is there
        assert readers_suffice(engines["replicas"], readers["replicas"], cores)


def test_a_run_can_begin_with_the_first_gpu_and_the_reader_that_stays() -> None:
    (cluster,) = of_kind("RayCluster")
    readers = groups_of(cluster)["readers"]
    cores = int(readers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    wanted = groups_of(cluster)["engines"]["maxReplicas"]
    placed = place(RunOptions(gpus=wanted), {"GPU": 1, "CPU": readers["minReplicas"] * cores}, 1, 1)
    assert placed.model_actors == wanted and placed.decode_actors > 1


@pytest.mark.parametrize("manifest", of_kind("RayJob"), ids=title)
def test_a_job_takes_its_cluster_with_it(manifest: Manifest) -> None:
    spec = manifest["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0
    assert "deletionStrategy" not in spec, "KubeRay refuses both"
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0


def test_the_clusters_differ_in_nothing_but_their_size() -> None:
    first, *others = [cluster_of(manifest) for manifest in of_kind(*RAY_KINDS)]
    assert len(others) == 2
    for cluster in (first, *others):
        for group in cluster["workerGroupSpecs"]:
            del group["replicas"]
    assert all(other == first for other in others)


# --- every pod ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", of_kind("CronJob", *RAY_KINDS), ids=title)
def test_pods_are_bounded_and_without_privileges(manifest: Manifest) -> None:
    for pod in pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert (
                container["resources"]["limits"].keys()
                >= {"cpu", "memory"}
                <= container["resources"]["requests"].keys()
            )
            assert not container["image"].endswith(":latest") and ":" in container["image"]


def test_secrets_are_named_and_never_told() -> None:
    for manifest in objects():
        assert manifest["kind"] != "Secret"
        for pod in pods(manifest):
            for container in pod["containers"]:
                assert not [
                    each for each in container.get("env", []) if "KEY" in each["name"] or "TOKEN" in each["name"]
                ]
    assert {
        source["secretRef"]["name"]
        for manifest in of_kind(*RAY_KINDS)
        for pod in pods(manifest)
        for container in pod["containers"]
        for source in container["envFrom"]
    } == {"earwitness-storage"}


def test_the_machines_are_scraped_where_they_export() -> None:
    (monitor,) = of_kind("PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for manifest in of_kind(*RAY_KINDS):
        for group in groups_of(manifest).values():
            ports = {
                each["name"]: each["containerPort"] for each in group["template"]["spec"]["containers"][0]["ports"]
            }
            assert str(ports[endpoint["port"]]) == group["rayStartParams"]["metrics-export-port"]


# --- the night ----------------------------------------------------------------------------------------------------


def test_the_nightly_job_may_do_what_it_does_and_outlasts_its_ray_job() -> None:
    (job,) = of_kind("CronJob")
    (role,) = of_kind("Role")
    (binding,) = of_kind("RoleBinding")
    (account,) = of_kind("ServiceAccount")
    (config,) = of_kind("ConfigMap")
    (pod,) = pods(job)
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert pod["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list", "delete"]}
    ]
    (volume,), (container,) = pod["volumes"], pod["containers"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    program, manifest = container["command"][1:]
    assert f"COPY infra/kubernetes/nightly.py {program}" in (INFRA / "Dockerfile").read_text()
    assert manifest == f"{container['volumeMounts'][0]['mountPath']}/{next(iter(config['data']))}"
    spec = yaml.safe_load(next(iter(config["data"].values())))["spec"]
    longest = spec["activeDeadlineSeconds"] + spec["preRunningDeadlineSeconds"]
    assert longest < job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]


def test_every_image_is_the_same() -> None:
    images = {container["image"] for each in objects() for pod in pods(each) for container in pod["containers"]}
    aws = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())
    assert images == {aws["docker"]["image"]}


# --- without Kubernetes -------------------------------------------------------------------------------------------


def test_the_cluster_on_aws_is_what_the_launcher_takes() -> None:
    cluster = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"]["CPU"] == 0
    market = {name: kind["node_config"].get("InstanceMarketOptions") for name, kind in types.items()}
    assert market == {"head": None, "readers": None, "engines": {"MarketType": "spot"}}
    readers, engines = types["readers"], types["engines"]
    assert engines["min_workers"] == 0 and engines["resources"]["CPU"] == 0
    assert cluster["max_workers"] == readers["max_workers"] + engines["max_workers"]
    assert readers_suffice(engines["max_workers"], readers["max_workers"], readers["resources"]["CPU"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine.")
def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    for unit in ("earwitness.service", "earwitness.timer"):
        text = (INFRA / "systemd" / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/opt/earwitness/bin", str(Path(sys.executable).parent)))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "earwitness.timer"), str(tmp_path / "earwitness.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_service_ends_as_from_an_interruption() -> None:
    unit = service("earwitness.service")
    assert unit["KillSignal"] == ["SIGINT"] and unit["KillMode"] == ["mixed"]
    assert unit["SuccessExitStatus"] == ["130"]
    assert service("earwitness.timer")["Persistent"] == ["true"]


@pytest.mark.parametrize(("where", "words"), commands().items(), ids=[*commands()])
def test_every_command_is_one_of_the_command_line(where: str, words: list[str]) -> None:
    command = typer.main.get_command(app)
    with command.make_context("earwitness", words) as context:
        chosen = command.get_command(context, words[0])  # type: ignore[attr-defined]
        assert chosen is not None, f"{where} calls for earwitness {words[0]}, which is no command"
        with chosen.make_context(words[0], words[1:]) as inner:
            assert inner.params["to"] and inner.params["sources"]
            if words[0] == "ingest":
                bounds(inner.params["max_hours"], inner.params["deadline"])


def test_every_file_is_one_that_the_readme_explains() -> None:
    readme = (INFRA / "README.md").read_text()
    folders = ("kubernetes", "aws", "systemd", "prometheus", "grafana")
    files = [path for folder in folders for path in (INFRA / folder).iterdir() if path.is_file()]
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {
        "archive.yaml",
        "cluster.yaml",
        "monitoring.yaml",
        "nightly.yaml",
    }
    assert not [str(path.relative_to(INFRA)) for path in files if str(path.relative_to(INFRA)) not in readme]
