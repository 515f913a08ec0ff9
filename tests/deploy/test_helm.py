"""The chart, rendered by Helm itself: valid for Kubernetes, true to the settings and the security that we promise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from taskherd.settings import Settings, durations, unknown_variables

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "taskherd"
ALL = yaml.safe_load((Path(__file__).parent / "values-all.yaml").read_text())
VALUES = {"default": {}, "all": ALL}
OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version()
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication"}
"""Kinds that Kubernetes itself has no schema for."""

Manifest = dict[str, Any]
every_values = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


def render(values: Manifest) -> list[Manifest]:
    """Every manifest of the chart with these values."""
    with helm.Chart.load(str(CHART)) as chart:
        rendered = chart.render(values, name="taskherd", namespace="prod")
    files = (text for path, text in rendered.items() if path.endswith(".yaml"))
    return [manifest for text in files for manifest in yaml.safe_load_all(text) if manifest]


def kinds(manifests: list[Manifest], *wanted: str) -> Iterator[Manifest]:
    """The manifests of some kinds."""
    return (manifest for manifest in manifests if manifest["kind"] in wanted)


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The name of every workload, and the spec of its pods."""
    for workload in kinds(manifests, "Deployment", "StatefulSet", "Job"):
        yield workload["metadata"]["name"], workload["spec"]["template"]["spec"]


def environment(pod: Manifest) -> dict[str, str]:
    """The environment of a pod's container."""
    return {each["name"]: each["value"] for each in pod["containers"][0]["env"]}


@every_values
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_manifest_is_valid(values: Manifest, version: str) -> None:
    """Kubernetes' own schemas, of the oldest version that the chart is for and of the newest, accept each manifest."""
    for manifest in render(values):
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_all_options_are_on_in_the_values_that_switch_all_on() -> None:
    """With everything switched on, every kind that the chart knows is there."""
    ours = "Deployment StatefulSet Job Service ServiceAccount PodDisruptionBudget NetworkPolicy Ingress ConfigMap"
    assert {manifest["kind"] for manifest in render(ALL)} == {*CUSTOM, *ours.split()}


@every_values
def test_pods_may_do_nothing_that_they_need_not(values: Manifest) -> None:
    """Not root, no capability, nothing writable but what is mounted for it, no access to Kubernetes, bounded memory."""
    for name, pod in pods(render(values)):
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"], name


@every_values
def test_secrets_are_files_and_every_process_has_its_own(values: Manifest) -> None:
    """No secret is in an environment, and no two processes share one."""
    secrets = {}
    for name, pod in pods(render(values)):
        given = environment(pod)
        assert not {"TASKHERD_DATABASE_URL", "TASKHERD_AMQP_URL", "TASKHERD_SECRET_KEY"} & given.keys()
        secrets[name] = next(volume["secret"]["secretName"] for volume in pod["volumes"] if volume["name"] == "secrets")
    assert len(set(secrets.values())) == len(secrets) == 4


@every_values
def test_kubernetes_waits_longer_than_a_process_needs(values: Manifest) -> None:
    """The grace period of each pod is longer than TASKHERD_GRACE, which is what the values say."""
    for name, pod in pods(render(values)):
        if not name.endswith("-migrate"):
            grace = durations.parse(environment(pod)["TASKHERD_GRACE"])
            assert grace == values.get("grace", Settings.model_fields["grace"].default)
            assert pod["terminationGracePeriodSeconds"] > grace


@every_values
def test_settings_of_the_chart_are_settings(values: Manifest) -> None:
    """Every variable that the chart sets is one, and its value one that taskherd takes."""
    for name, pod in pods(render(values)):
        given = environment(pod)
        assert unknown_variables(given) == (), name
        chosen: dict[str, Any] = {
            variable.removeprefix("TASKHERD_").lower(): value
            for variable, value in given.items()
            if variable.startswith("TASKHERD_") and not variable.endswith("_FILE")
        }
        Settings(**chosen)


@every_values
def test_a_runner_has_nothing_that_its_agents_must_not_see(values: Manifest) -> None:
    """Of secrets it has RabbitMQ's URL alone, no policy lets it to the database, and it knows where the api is."""
    manifests = render(values)
    pod = next(pod for name, pod in pods(manifests) if name.endswith("-runner"))
    given = environment(pod)
    assert {name for name in given if name.endswith("_FILE")} == {"TASKHERD_AMQP_URL_FILE"}
    secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "secrets")
    assert [item["path"] for item in secret["items"]] == ["amqp-url"]
    service = next(each for each in kinds(manifests, "Service") if each["metadata"]["name"].endswith("-api"))
    assert (
        given["TASKHERD_AGENT_API_URL"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    )
    policy = next(each for each in kinds(manifests, "NetworkPolicy") if each["metadata"]["name"].endswith("-runner"))
    assert 5432 not in {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", ())}


@every_values
def test_probes_mean_what_they_say(values: Manifest) -> None:
    """Alive asks only whether the process answers, ready whether it works, both on the port that the process opens."""
    for name, pod in pods(render(values)):
        if name.endswith("-migrate"):
            continue
        (container,) = pod["containers"]
        assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")} == {"/livez"}
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        port = next(port["containerPort"] for port in container["ports"] if port["name"] == "ops")
        assert environment(pod)["TASKHERD_OPS_PORT"] == str(port)


@every_values
def test_the_schema_is_migrated_before_anything_starts(values: Manifest) -> None:
    """The job is a hook before install and upgrade, and the processes themselves never migrate."""
    manifests = render(values)
    (job,) = kinds(manifests, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["db", "upgrade"]
    for name, pod in pods(manifests):
        assert name.endswith("-migrate") or environment(pod)["TASKHERD_MIGRATE"] == "never"


def test_a_processes_settings_win_over_those_for_all() -> None:
    """What a process is given for itself counts, the rest is common."""
    found = {name: environment(pod) for name, pod in pods(render(ALL))}
    assert found["herd-worker"]["TASKHERD_LOG_LEVEL"] == "info"
    assert found["herd-api"]["TASKHERD_LOG_LEVEL"] == "debug"
    assert found["herd-worker"]["TASKHERD_AGENT_LOST_AFTER"] == "45s"
    assert found["herd-worker"]["TASKHERD_REPORT_PARTITIONS"] == "12"


def test_keda_counts_every_queue_that_workers_read() -> None:
    """The expression takes reports, every partition and the commands of this prefix, and no other queue."""
    manifests = render(ALL)
    (scaled,) = kinds(manifests, "ScaledObject")
    pattern = re.compile(scaled["spec"]["triggers"][0]["metadata"]["queueName"])
    assert all(pattern.search(f"team.a.{queue}") for queue in ("reports", "reports.0", "reports.11", "commands"))
    assert not any(
        pattern.search(queue) for queue in ("team.a.dead", "team.a.work.default", "teamxa.reports", "taskherd.reports")
    )
    (worker,) = (each for each in kinds(manifests, "Deployment") if each["metadata"]["name"] == "herd-worker")
    assert "replicas" not in worker["spec"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == "herd-worker"


def test_the_rules_and_the_dashboard_are_those_that_are_tested() -> None:
    """The chart ships the very rules of deploy/prometheus, with the runbook's address, and the dashboard."""
    manifests = render(ALL)
    (rule,) = kinds(manifests, "PrometheusRule")
    groups = [
        group
        for path in ("worker", "api", "runner")
        for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules" / f"{path}.yml").read_text())["groups"]
    ]
    told = yaml.safe_load(yaml.safe_dump(groups).replace("docs/runbook.md", "https://runbooks.example.com/taskherd"))
    assert rule["spec"]["groups"] == told
    (dashboard,) = kinds(manifests, "ConfigMap")
    assert dashboard["data"]["taskherd.json"] == (ROOT / "deploy" / "grafana" / "taskherd.json").read_text()
    monitors = {
        each["spec"]["endpoints"][0]["relabelings"][0]["replacement"] for each in kinds(manifests, "ServiceMonitor")
    }
    assert monitors == {"taskherd-worker", "taskherd-api", "taskherd-runner"}


@pytest.mark.parametrize(
    "values",
    [
        {"grace": 0},
        {"worker": {"replica": 3}},
        {"worker": {"partitions": 1000}},
        {"settings": {"DATABASE_URL": "postgresql://…"}},
        {"settings": {"agent_lost_after": "30s"}},
        {"image": {"digest": "latest"}},
        {"ca": {"secret": "a", "configMap": "b"}},
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused(values: Manifest) -> None:
    """values.schema.json refuses typos, secrets among the settings, and numbers out of bounds."""
    with helm.Chart.load(str(CHART)) as chart, pytest.raises(helm.HelmError):
        chart.validate_schema(chart.merge_values(values))


@every_values
def test_values_that_make_sense_are_taken(values: Manifest) -> None:
    """The schema accepts the defaults and all options; Helm's own lint has no complaint."""
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(chart.merge_values(values))
    assert helm.lint(str(CHART))["errors"] == []
