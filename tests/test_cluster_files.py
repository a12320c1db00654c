"""The files of cluster/ for Kubernetes, MLflow and images are what these take; none is careless."""

from __future__ import annotations

import copy
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import boto3
import jsonschema
import kubernetes_validate
import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header
from ray.autoscaler._private.kuberay import autoscaling_config

from cluster import check
from phenoscale.on_ray.start import HEAD_RESOURCE, READERS_RESOURCE
from tests.s3 import running_s3

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
KUBERNETES = "1.34"
VM_FILES = ("aws.yaml", "gcp.yaml")
KUBERNETES_FILES = ("namespace.yaml", "raycluster.yaml", "rayjob.yaml", "mlflow.yaml")
TO_FILL_IN = (*VM_FILES, "raycluster.yaml", "rayjob.yaml", "mlflow.yaml", "aws_head_policy.json")
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)


@functools.cache
def documents(name):
    return tuple(yaml.safe_load_all((CLUSTER / name).read_text()))


# Values of one's own


@pytest.mark.parametrize("name", TO_FILL_IN)
def test_a_file_with_placeholders_is_refused_and_filled_in_taken(name, tmp_path, capsys):
    assert check.main([str(CLUSTER / name)]) == 1
    assert "REPLACE_" in capsys.readouterr().err
    filled = tmp_path / name
    filled.write_text(re.sub(r"REPLACE_[A-Z_]+", "mine", (CLUSTER / name).read_text()))
    assert check.main([str(filled)]) == 0


def test_nothing_else_is_left_to_fill_in():
    others = [path for path in CLUSTER.glob("*.[yj]*") if path.name not in TO_FILL_IN]
    asks = {path.name for path in others if check.placeholders(path.read_text())}
    assert asks == {"aws_storage_policy.json"}


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|[0-9a-f]{32}"
    r"|(?i:password|auth_?token|secret|api_?key)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{8,}"
)


def test_no_file_holds_a_secret():
    for planted in ("password: hunter2hunter2", "RAY_AUTH_TOKEN=abcdefgh12", "a" * 32):
        assert SECRET.search(planted)
    for path in CLUSTER.iterdir():
        if path.is_file():
            found = SECRET.search(path.read_text())
            assert not found, f"{path.name}: {found}"


def test_every_file_names_rays_resources_as_the_code_does():
    for path in CLUSTER.iterdir():
        if path.is_file():
            named = set(re.findall(r"phenoscale_(?:head|reader)\w*", path.read_text()))
            assert named <= {HEAD_RESOURCE, READERS_RESOURCE}, path.name
    assert HEAD_RESOURCE in (CLUSTER / "slurm.sbatch").read_text()


def test_nothing_listens_on_all_addresses_but_mlflow_behind_its_policy():
    for path in CLUSTER.iterdir():
        if path.is_file() and path.name != "mlflow.yaml":
            assert "0.0.0.0" not in path.read_text(), path.name
    for text in re.findall(
        r"--dashboard-host=(\S+)", "".join((CLUSTER / f).read_text() for f in VM_FILES)
    ):
        assert text == "127.0.0.1"
    everything = [d for name in KUBERNETES_FILES for d in documents(name)]
    assert not {"Ingress", "Gateway", "HTTPRoute"} & {d["kind"] for d in everything}
    for service in (d for d in everything if d["kind"] == "Service"):
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"


# Kubernetes


def kuberay_check(document):
    fields = json.loads((ROOT / "tests/data/kuberay/fields.json").read_text())
    schema = {"$ref": f"#/definitions/{document['kind']}", "definitions": fields["definitions"]}
    jsonschema.validate(document, schema)


def strict(document):
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kuberay_takes_the_files_and_refuses_what_it_does_not_know():
    (cluster,), (job,) = documents("raycluster.yaml"), documents("rayjob.yaml")
    for document in (cluster, job):
        kuberay_check(document)
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    for path, value in (
        (("spec", "authOptions", "typo"), 1),
        (("spec", "autoscalerOptions", "version"), "v3"),
        (("spec", "headGroupSpec", "resources", "CPU"), 0),
        (("spec", "workerGroupSpecs", 0, "minreplicas"), 0),
    ):
        broken = copy.deepcopy(cluster)
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            kuberay_check(broken)


def pods():
    """Every pod of the Kubernetes files, as a pod of its own, by name."""
    (cluster,), (job,) = documents("raycluster.yaml"), documents("rayjob.yaml")
    yield "head", cluster["spec"]["headGroupSpec"]["template"]
    for group in cluster["spec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    yield "submitter", job["spec"]["submitterPodTemplate"]
    for document in documents("mlflow.yaml"):
        if "template" in document["spec"]:
            yield document["metadata"]["name"], document["spec"]["template"]


def test_kubernetes_takes_every_object_and_pod():
    for name in ("namespace.yaml", "mlflow.yaml"):
        for document in documents(name):
            strict(document)
    for name, template in pods():
        strict({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **template})
    with pytest.raises(kubernetes_validate.ValidationError):
        strict({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"contaners": []}})


def test_every_pod_keeps_to_the_restricted_standard_that_the_namespace_enforces():
    for name, template in pods():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]
            for variable in container.get("env", ()):
                if re.search("KEY|WORD", variable["name"]):
                    assert list(variable["valueFrom"]) == ["secretKeyRef"], variable
        # Only the autoscaler beside the head speaks to Kubernetes.
        assert spec["automountServiceAccountToken"] == (name == "head")


def test_rays_autoscaler_reads_the_groups_as_they_are_meant():
    (cluster,) = documents("raycluster.yaml")
    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["headgroup"]["resources"][HEAD_RESOURCE] == 1
    assert config["idle_timeout_minutes"] == 5
    for kind in ("readers", "gpu1", "gpu8"):
        spot, on_demand = types[f"{kind}-spot"], types[kind]
        assert spot["resources"] == on_demand["resources"]
        assert spot["min_workers"] == on_demand["min_workers"] == 0
        assert spot["priority"] > on_demand["priority"]
    assert types["readers"]["resources"][READERS_RESOURCE] == types["readers"]["resources"]["CPU"]
    assert [types[kind]["resources"]["GPU"] for kind in ("gpu1", "gpu8")] == [1, 8]
    spec = cluster["spec"]
    assert spec["rayVersion"] == PINS["ray"] and spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2"
    (job,) = documents("rayjob.yaml")
    assert json.loads(job["spec"]["entrypointResources"]) == {HEAD_RESOURCE: 0.001}
    assert job["spec"]["shutdownAfterJobFinishes"]


# MLflow


def mlflow_server():
    (deployment,) = (d for d in documents("mlflow.yaml") if d["kind"] == "Deployment")
    return deployment["spec"]["template"]["spec"]


def test_mlflow_takes_the_servers_options_and_hosts():
    import mlflow.cli

    container = mlflow_server()["containers"][0]
    assert container["command"] == ["mlflow", "server"]
    options = mlflow.cli.server.make_context("server", list(container["args"])).params
    assert options["serve_artifacts"] and not options["disable_security_middleware"]
    hosts = options["allowed_hosts"].split(",")
    for host in ("phenoscale-mlflow:5000", "localhost:5000", "127.0.0.1:5000"):
        assert is_allowed_host_header(hosts, host)
    assert not is_allowed_host_header(hosts, "elsewhere.example:5000")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/health"
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment["MLFLOW_BACKEND_STORE_URI"].endswith("@phenoscale-postgres:5432/mlflow")


def test_clients_go_through_the_server_which_alone_reaches_the_store():
    import mlflow.environment_variables as variables

    for name, template in pods():
        if name != "submitter" and not name.startswith("phenoscale-"):
            given = {v["name"]: v["value"] for v in template["spec"]["containers"][0]["env"]}
            for way in ("DOWNLOAD", "UPLOAD"):
                known = getattr(variables, f"MLFLOW_ENABLE_PROXY_MULTIPART_{way}")
                assert given[known.name] == "false"


def test_every_service_leads_to_a_pod_and_every_policy_names_one():
    files = documents("mlflow.yaml")
    apps = {name for name, _ in pods()}
    for document in files:
        if document["kind"] == "Service":
            (port,) = document["spec"]["ports"]
            pod = dict(pods())[document["spec"]["selector"]["app"]]
            ports = [p["containerPort"] for p in pod["spec"]["containers"][0]["ports"]]
            assert port["targetPort"] in ports
        if document["kind"] == "NetworkPolicy":
            selector = document["spec"]["podSelector"]
            named = [selector.get("matchLabels", {}).get("app")]
            named = selector.get("matchExpressions", [{"values": named}])[0]["values"]
            assert set(named) <= apps


def test_the_bucket_is_made_once(monkeypatch):
    container = mlflow_server()["initContainers"][0]
    assert container["command"] == ["python", "-c"]
    with running_s3() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.endpoint)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for _ in range(2):
            exec(container["args"][0], {})
        client = boto3.client("s3", endpoint_url=store.endpoint, region_name="us-east-1")
        assert "mlflow" in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]


# Images


def test_the_dockerfile_is_clean_and_copies_what_is_there():
    text = (CLUSTER / "Dockerfile").read_text()
    subprocess.run([Path(sys.executable).parent / "hadolint", CLUSTER / "Dockerfile"], check=True)
    kept = {
        line[1:]
        for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [
        source
        for line in re.findall(r"(?m)^COPY (?!--from)(?:--chown=\S+ )?(.+)$", text)
        for source in line.split()[:-1]
    ]
    assert copied and set(copied) == kept
    assert all((ROOT / source).exists() for source in copied)
    stages = re.split(r"(?m)^FROM ", text)[2:]
    assert all(re.findall(r"(?m)^USER (.+)$", stage) == ["1000:100"] for stage in stages)
    assert re.search(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-", text)
    assert all("constraints.txt" in stage for stage in stages)
