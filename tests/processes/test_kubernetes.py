"""deploy/kubernetes is valid against the schemas of Kubernetes, and its numbers fit ESG's.

test_container.py tests its arguments and its probe in a container.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.container import instructions
from tests.support.runner import CHECKOUT, run_to_its_end

FILES = CHECKOUT / "deploy" / "kubernetes"


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FILES / name).read_text()))


@pytest.fixture
def deployment() -> dict[str, Any]:
    return manifests("deployment.yaml")[0]


@pytest.fixture
def settings(deployment: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """All settings that ESG derives from the container's arguments."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    done = run_to_its_end(tmp_path, *container["args"], "--print-config")
    assert (done.code, done.errors) == (0, [])
    return tomllib.loads(done.output)


@pytest.mark.parametrize("version", ["1.25", "1.31"])
@pytest.mark.parametrize("name", ["deployment.yaml", "autoscaler.yaml"])
def test_the_manifests_are_valid_against_the_schemas(name: str, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for manifest in manifests(name):
        validator.validate(manifest, version, strict=True)


def test_a_pod_has_time_to_drain(deployment: dict[str, Any], settings: dict[str, Any]) -> None:
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert settings["drain_delay"] > 0
    for_the_rest = 11  # docs/signals.md, "How long a stop takes"
    assert grace >= settings["drain_delay"] + settings["graceful_timeout"] + for_the_rest
    assert settings["timeout_keep_alive"] > 60  # the value of ingress-nginx


def test_the_probes_wait_longer_than_esgs_timeouts(
    deployment: dict[str, Any], settings: dict[str, Any]
) -> None:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    def patience(probe: dict[str, Any]) -> int:
        return probe["periodSeconds"] * probe["failureThreshold"]

    assert patience(container["startupProbe"]) > settings["timeout_boot"]
    assert patience(container["livenessProbe"]) > settings["timeout"]
    assert patience(container["readinessProbe"]) < patience(container["livenessProbe"])


def test_labels_ports_and_volumes_match(
    deployment: dict[str, Any], settings: dict[str, Any]
) -> None:
    _, service, budget = manifests("deployment.yaml")
    (autoscaler,) = manifests("autoscaler.yaml")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert settings["bind"] == [f"0.0.0.0:{port['containerPort']}"]
    assert {volume["name"] for volume in pod["spec"]["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }


def test_the_deployment_matches_the_dockerfile(deployment: dict[str, Any]) -> None:
    told = dict(instructions((CHECKOUT / "deploy/container/Dockerfile").read_text()))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    who = pod["securityContext"]
    assert told["USER"] == f"{who['runAsUser']}:{who['runAsGroup']}"
    assert told["EXPOSE"] == str(container["ports"][0]["containerPort"])
    assert container["startupProbe"]["httpGet"]["path"] in told["HEALTHCHECK"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
