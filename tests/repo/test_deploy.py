"""The image and the Kubernetes example name extras, settings and options that exist."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from statepool.house.check import mistakes

ROOT = Path(__file__).parents[2]
IMAGE = (ROOT / "deploy" / "Dockerfile").read_text()
PARTS = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))


def test_the_image_installs_extras_that_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r'"\$wheel\[([a-z,]+)\]"', IMAGE)
    assert {"serve", "sandbox", "ray"} <= set(named.split(",")) <= set(known)


def test_the_platform_file_has_no_mistake(tmp_path):
    (config,) = [part["data"] for part in PARTS if part["kind"] == "ConfigMap"]
    path = tmp_path / "house.yaml"
    path.write_text(config["house.yaml"])
    assert mistakes(path, here=False) == []


def test_what_a_part_refers_to_is_there():
    pods = [part["spec"]["template"] for part in PARTS if part["kind"] == "Deployment"]
    (service,) = [part["spec"] for part in PARTS if part["kind"] == "Service"]
    assert [pod for pod in pods if service["selector"].items() <= pod["metadata"]["labels"].items()] == [pods[0]]
    offered = {each["containerPort"] for each in pods[0]["spec"]["containers"][0]["ports"]}
    assert {port["port"] for port in service["ports"]} == offered
    for pod in pods:
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_ray_takes_the_options():
    pytest.importorskip("ray")
    text = " ".join(" ".join(box["args"]) for part in PARTS if part["kind"] == "Deployment"
                    for box in part["spec"]["template"]["spec"]["containers"])  # fmt: skip
    calls = [call.split("&&")[0] for call in text.split("ray start")[1:]]
    assert len(calls) == 2
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"], capture_output=True, text=True, check=True
    )
    for call in calls:
        for flag in re.findall(r"--[a-z-]+", call.split("exec")[0]):
            assert re.search(rf"{flag}\b", done.stdout), flag
