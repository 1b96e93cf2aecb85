"""deploy/: manifests that Kubernetes and KubeRay take, and a Dockerfile without the usual faults.

Nothing here starts a container or a cluster: fields are compared with what KubeRay's v1 API asks.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERAY = sorted((DEPLOY / "kuberay").glob("*.yaml"))
KINDS = {
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
    "PersistentVolumeClaim": "v1",
}
CLUSTER_KEYS = {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
JOB_KEYS = {
    "entrypoint",
    "submissionMode",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "runtimeEnvYAML",
    "rayClusterSpec",
}
HEAD_KEYS = {"rayStartParams", "template"}
WORKER_KEYS = HEAD_KEYS | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def load(file: Path) -> dict[str, Any]:
    (document,) = yaml.safe_load_all(file.read_text())
    return dict(document)


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in KUBERAY:
        document = load(file)
        if document["kind"] in {"RayCluster", "RayJob"}:
            spec = document["spec"]
            yield file.name, spec.get("rayClusterSpec", spec)


def groups() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, spec in clusters():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield name, group


@pytest.mark.parametrize("file", KUBERAY, ids=lambda file: file.name)
def test_kinds_and_versions_are_those_of_the_api(file: Path) -> None:
    document = load(file)
    assert KINDS[document["kind"]] == document["apiVersion"]
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])


def test_clusters_have_the_fields_of_the_api_and_the_ray_that_is_pinned() -> None:
    from pipelines.cluster.lean import VERSION  # imports Ray

    found = list(clusters())
    assert len(found) == 2
    for name, spec in found:
        assert set(spec) == CLUSTER_KEYS, name
        assert str(spec["rayVersion"]).startswith(VERSION), name
        assert set(spec["headGroupSpec"]) == HEAD_KEYS
        for group in spec["workerGroupSpecs"]:
            assert set(group) == WORKER_KEYS, name
            assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_start_parameters_are_strings_as_the_api_asks() -> None:
    for name, group in groups():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), name


def test_every_pod_has_storage_a_token_limits_and_no_root() -> None:
    for name, group in groups():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["terminationGracePeriodSeconds"] >= 30, name
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name
        variables = {entry["name"]: entry for entry in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in variables["RAY_AUTH_TOKEN"]["valueFrom"]
        assert all(isinstance(entry.get("value", ""), str) for entry in container["env"]), name
        resources = container["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"], name
        assert ":" in container["image"]
        assert not container["image"].endswith(":latest")


def test_the_claim_that_pods_mount_is_there_and_shared() -> None:
    claim = load(DEPLOY / "kuberay" / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, group in groups():
        mounted = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in group["template"]["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        ]
        assert mounted == [claim["metadata"]["name"]], name


def test_jobs_run_a_stage_in_the_shared_folder() -> None:
    job = load(DEPLOY / "kuberay" / "rayjob-train.yaml")["spec"]
    assert set(job) == JOB_KEYS
    module = job["entrypoint"].removeprefix("python -m ").replace(".", "/")
    assert (ROOT / f"{module}.py").is_file()
    variables = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    (container,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert variables["SEGCORE_ROOT"] in {m["mountPath"] for m in container["volumeMounts"]}
    assert all(isinstance(value, str) for value in variables.values())


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_dockerfile_is_pinned_small_and_not_root() -> None:
    found = instructions()
    base = found[0]
    assert base[0] == "FROM"
    assert re.fullmatch(r"\S+:\S*\d\S*", base[1])
    assert [value for word, value in found if word == "USER"][-1] not in {"root", "0"}
    for word, value in found:
        assert word in {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}, word
        assert word != "WORKDIR" or value.startswith("/")
        assert word != "CMD" or value.startswith("[")
        if word == "RUN" and "apt-get install" in value:
            assert "--no-install-recommends" in value
            assert "rm -rf /var/lib/apt/lists/*" in value
        if word == "RUN" and "pip install" in value:
            assert "--no-cache-dir" in value
            assert "--require-hashes" in value or "--no-deps" in value
        assert "sudo" not in value


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    admitted = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()
    }
    for word, value in instructions():
        if word == "COPY":
            for source in value.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in admitted, source
