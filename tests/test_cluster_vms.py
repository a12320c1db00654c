"""aws.yaml and gcp.yaml are what Ray, EC2 and Compute Engine take, and fall back from spot."""

from __future__ import annotations

import gzip
import importlib.resources
import json
import time
from contextlib import contextmanager
from pathlib import Path

import boto3
import jsonschema
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from ray.autoscaler._private import commands
from ray.autoscaler._private.providers import _clear_provider_cache, _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config

from phenoscale.on_ray.start import HEAD_RESOURCE, READERS_RESOURCE

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
FILES = ("aws.yaml", "gcp.yaml")


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # file_mounts name their sources from there
    monkeypatch.syspath_prepend(CLUSTER)  # as PYTHONPATH has it, for Ray too


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name):
    config = prepare_config(yaml.safe_load((CLUSTER / name).read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, HEAD_RESOURCE: 1}
    workers = {kind: entry for kind, entry in types.items() if kind != config["head_node_type"]}
    assert {kind: entry["min_workers"] for kind, entry in workers.items()} == dict.fromkeys(
        ("readers", "gpu1", "gpu8"), 0
    )
    assert sum(entry["max_workers"] for entry in workers.values()) == config["max_workers"]
    assert workers["readers"]["resources"][READERS_RESOURCE] > 0
    assert [workers[kind]["resources"].get("GPU") for kind in ("gpu1", "gpu8")] == [1, 8]
    assert config["provider"]["use_internal_ips"] and config["idle_timeout_minutes"] == 5
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "RAY_enable_autoscaler_v2=1" in head
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    assert any("constraints.txt" in command for command in config["setup_commands"])
    provider = config["provider"]["module"].partition(".")[0]
    for source in config["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists()
    assert f"cluster/{provider}.py" in config["file_mounts"].values()
    with pytest.raises(jsonschema.ValidationError, match="typo"):
        validate_config({**config, "typo": 1})


@contextmanager
def simulated_aws():
    """Moto in this process; what other tests keep in it, such as an object store, stays."""
    aws = mock_aws()
    aws.start(reset=False)
    try:
        yield
    finally:
        aws.stop(remove_data=False)


@pytest.fixture(scope="module")
def ec2():
    """A simulated EC2, and what `ray up` makes of aws.yaml, filled in for it.

    One for all tests of the module: Ray asks for every instance type, which takes ten seconds.
    """
    with pytest.MonkeyPatch.context() as environment, simulated_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # thousands, ten seconds more
        environment.syspath_prepend(CLUSTER)
        environment.chdir(ROOT)
        client = boto3.client("ec2", region_name="us-east-1")
        network = client.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = client.create_subnet(VpcId=network, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
        group = client.create_security_group(GroupName="g", Description="g", VpcId=network)
        client.create_key_pair(KeyName="mine")
        for role in ("head", "worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=f"phenoscale-{role}")
        text = (CLUSTER / "aws.yaml").read_text()
        for name, value in {
            "REPLACE_REGION": "us-east-1",
            "REPLACE_KEY": "mine",
            "REPLACE_ACCOUNT": "123456789012",
            "subnet-REPLACE_SUBNET": subnet,
            "sg-REPLACE_GROUP": group["GroupId"],
            "ami-REPLACE_IMAGE": "ami-12345678",
            "ami-REPLACE_GPU_IMAGE": "ami-87654321",
        }.items():
            text = text.replace(name, value)
        config = commands._bootstrap_config(yaml.safe_load(text), no_config_cache=True)
        yield client, config, _get_node_provider(config["provider"], config["cluster_name"])
        _clear_provider_cache()


def started(client, provider, entry, kind):
    """The instance that Ray's provider starts for a node type."""
    tags = {"ray-user-node-type": kind, "ray-node-type": "worker", "ray-launch-config": "x"}
    made = provider.create_node(dict(entry["node_config"]), tags, 1)
    return client.describe_instances(InstanceIds=list(made))["Reservations"][0]["Instances"][0]


def test_ray_starts_every_node_type_on_ec2_with_the_rights_of_the_policy(ec2):
    client, config, provider = ec2
    calls: set[str] = set()
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register(
            "before-call.ec2.*", lambda model, **_: calls.add(f"ec2:{model.name}")
        )
    import moto.ec2

    known = json.loads(
        gzip.decompress(
            (importlib.resources.files(moto.ec2) / "resources/instance_types.json.gz").read_bytes()
        )
    )
    for kind, entry in config["available_node_types"].items():
        instance = started(client, provider, entry, kind)
        assert "PublicIpAddress" not in instance
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert instance.get("InstanceLifecycle") == (None if kind == "head" else "spot")
        role = "head" if kind == "head" else "worker"
        assert instance["IamInstanceProfile"]["Arn"].endswith(f"instance-profile/phenoscale-{role}")
        described = known[instance["InstanceType"]]
        if kind != "head":
            assert entry["resources"]["CPU"] == described["VCpuInfo"]["DefaultVCpus"]
        gpus = sum(gpu["Count"] for gpu in described.get("GpuInfo", {}).get("Gpus", ()))
        assert entry["resources"].get("GPU", 0) == gpus
    nodes = provider.non_terminated_nodes({})
    provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
    provider.terminate_nodes(nodes)
    while "ec2:CreateTags" not in calls:  # tags are written by a thread, a second later
        time.sleep(0.1)
    policy = json.loads((CLUSTER / "aws_head_policy.json").read_text())
    allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert {"ec2:RunInstances", "ec2:TerminateInstances"} <= calls <= allowed


def test_a_worker_without_spot_capacity_comes_on_demand(ec2):
    client, config, provider = ec2
    code = "InsufficientInstanceCapacity"

    def refuse(params, **_):
        if "InstanceMarketOptions.MarketType" in params["body"]:
            raise ClientError({"Error": {"Code": code, "Message": "none"}}, "RunInstances")

    events = provider.ec2_fail_fast.meta.client.meta.events
    events.register("before-call.ec2.RunInstances", refuse)
    entry = config["available_node_types"]["gpu1"]
    assert "InstanceLifecycle" not in started(client, provider, entry, "gpu1")
    code = "UnauthorizedOperation"  # what on demand would meet as well is not tried again
    with pytest.raises(Exception, match="UnauthorizedOperation"):
        started(client, provider, entry, "gpu1")
    events.unregister("before-call.ec2.RunInstances", refuse)


def unknown_fields(schemas, name, value, path=""):
    """Fields of a request that Google's description of the API does not have."""
    properties = schemas[name]["properties"]
    for key, inner in value.items():
        if key not in properties:
            yield f"{path}.{key}"
            continue
        described = properties[key]
        items = inner if isinstance(inner, list) else [inner]
        reference = described.get("$ref") or described.get("items", {}).get("$ref")
        for item in items:
            if reference and isinstance(item, dict):
                yield from unknown_fields(schemas, reference, item, f"{path}.{key}")
            if "enum" in described and item not in described["enum"]:
                yield f"{path}.{key}={item}"


def test_compute_engine_knows_every_field():
    import googleapiclient

    text = importlib.resources.files(googleapiclient) / "discovery_cache/documents/compute.v1.json"
    schemas = json.loads(text.read_text())["schemas"]
    for kind, entry in yaml.safe_load((CLUSTER / "gcp.yaml").read_text())[
        "available_node_types"
    ].items():
        node = entry["node_config"]
        assert not list(unknown_fields(schemas, "Instance", node, kind))
        assert not any("accessConfigs" in network for network in node["networkInterfaces"])
        # The last part of these names is the number of vCPUs.
        if node["machineType"].startswith(("n2-standard", "g2-standard")) and kind != "head":
            assert entry["resources"]["CPU"] == int(node["machineType"].rpartition("-")[2])
    broken = {**node, "scheduling": {"provisioningModel": "spot", "typo": 1}}
    assert len(list(unknown_fields(schemas, "Instance", broken))) == 2


def test_a_zone_without_spot_gives_an_instance_on_demand(monkeypatch):
    from spot_first_gcp import SpotFirst as provider_class

    asked = []

    def create(self, base_config, tags, count):
        asked.append(base_config["scheduling"]["provisioningModel"])
        if asked[-1] == "SPOT":
            raise Exception({"errors": [{"code": error}]})
        return {"name": {}}

    monkeypatch.setattr(provider_class.__mro__[1], "create_node", create)
    provider = object.__new__(provider_class)  # without an account there is nothing to construct
    node = yaml.safe_load((CLUSTER / "gcp.yaml").read_text())["available_node_types"]["gpu1"]
    error = "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
    assert provider.create_node(node["node_config"], {}, 1)
    assert asked == ["SPOT", "STANDARD"]
    error = "PERMISSION_DENIED"
    with pytest.raises(Exception, match="PERMISSION_DENIED"):
        provider.create_node(node["node_config"], {}, 1)
    assert asked[2:] == ["SPOT"]
