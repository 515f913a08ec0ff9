"""The Helm chart: its manifests are valid, hardened, and consistent with the settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from taskherd import durations
from taskherd.runner import privileges
from taskherd.settings import Settings, unknown_variables

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "taskherd"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
ALL = yaml.safe_load((Path(__file__).parent / "values-all.yaml").read_text())
VALUES = {"default": {}, "all": ALL}
OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version()
CAPABILITIES = [*sorted(privileges.REQUIRED.values()), "SYS_PTRACE"]
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication"}
"""Custom resource kinds, for which Kubernetes has no schema."""

NOT_PROCESSES = ("-migrate", "-operator")
"""How the names of workloads end that run no process of taskherd."""

OWN = {"name": "taskherd-runner-gpu", "amqpUrl": "amqp-url"}
"""The Secret of a pool with a RabbitMQ user of its own."""

Manifest = dict[str, Any]
every_values = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


def render(values: Manifest) -> list[Manifest]:
    """Return every manifest of the chart with these values."""
    with helm.Chart.load(str(CHART)) as chart:
        rendered = chart.render(values, name="taskherd", namespace="prod")
    files = (text for path, text in rendered.items() if path.endswith(".yaml"))
    return [manifest for text in files for manifest in yaml.safe_load_all(text) if manifest]


def kinds(manifests: list[Manifest], *wanted: str) -> Iterator[Manifest]:
    """Return the manifests of some kinds."""
    return (manifest for manifest in manifests if manifest["kind"] in wanted)


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yield the name of every workload, and the spec of its pods."""
    for workload in kinds(manifests, "Deployment", "StatefulSet", "Job"):
        yield workload["metadata"]["name"], workload["spec"]["template"]["spec"]


def environment(pod: Manifest) -> dict[str, str]:
    """Return the environment of a pod's container, in which no name is twice: the last value would count."""
    variables = [(each["name"], each["value"]) for each in pod["containers"][0]["env"]]
    assert len(dict(variables)) == len(variables), sorted(variables)
    return dict(variables)


def runners(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the workload of each pool of runners."""
    return {environment(pod_of(each)).get("TASKHERD_RUNNER_POOL", ""): each for each in kinds(manifests, "StatefulSet")}


def pod_of(workload: Manifest) -> Manifest:
    """Return the spec of a workload's pods."""
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


@every_values
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_manifest_is_valid(values: Manifest, version: str) -> None:
    """Each manifest is valid under the schemas of the oldest supported and of the newest Kubernetes."""
    for manifest in render(values):
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_values_with_all_options_render_every_kind() -> None:
    """With all options switched on, the chart renders every kind of resource."""
    builtin = "Deployment StatefulSet Job Service ServiceAccount PodDisruptionBudget NetworkPolicy Ingress ConfigMap"
    assert {manifest["kind"] for manifest in render(ALL)} == {*CUSTOM, *builtin.split()}


@every_values
def test_pods_have_minimal_privileges(values: Manifest) -> None:
    """No root, no capabilities, no writable root file system, no access to Kubernetes, limited memory.

    Only runners that run agents as users of their own are root, with the capabilities that this takes.
    """
    for name, pod in pods(render(values)):
        gives_users = "TASKHERD_RUNNER_AGENT_UIDS" in environment(pod)
        assert pod["securityContext"]["runAsNonRoot"] is not gives_users, name
        assert (pod["securityContext"]["runAsUser"] == 0) is gives_users, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], **({"add": CAPABILITIES} if gives_users else {})},
        }
        assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize(
    ("values", "ranges"),
    [
        ({}, {"": "200000-265535"}),
        ({"runner": {"agentUids": ""}}, {"": None}),
        ({"runner": {"pools": [{"name": "a"}, {"name": "b", "agentUids": ""}]}}, {"a": "200000-265535", "b": None}),
        ({"runner": {"agentUids": "", "pools": [{"name": "a", "agentUids": "7000-7999"}]}}, {"a": "7000-7999"}),
    ],
)
def test_agents_are_users_of_their_own_unless_that_is_switched_off(
    values: Manifest, ranges: dict[str, str | None]
) -> None:
    """A pool can have its own range, or none; its secret is closed to all users but root and the pod's group."""
    found = {pool: environment(pod_of(each)) for pool, each in runners(render(values)).items()}
    assert {pool: variables.get("TASKHERD_RUNNER_AGENT_UIDS") for pool, variables in found.items()} == ranges
    for runner in runners(render(values)).values():
        pod = pod_of(runner)
        secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "secrets")
        assert secret["defaultMode"] & 0o007 == 0
        assert ("add" in pod["containers"][0]["securityContext"]["capabilities"]) == (
            "TASKHERD_RUNNER_AGENT_UIDS" in environment(pod)
        )


def test_agents_cannot_remove_each_others_temporary_files() -> None:
    """The volume of /tmp gets the sticky bit before a runner starts whose agents are different users."""
    for pool, runner in runners(render({"runner": {"pools": [{"name": "a"}, {"name": "b", "agentUids": ""}]}})).items():
        pod = pod_of(runner)
        (own,) = (each for each in pod["containers"][0]["volumeMounts"] if each["mountPath"] == "/tmp")  # noqa: S108
        found = [(each["command"], each["volumeMounts"]) for each in pod.get("initContainers", ())]
        assert found == ([(["chmod", "01777", own["mountPath"]], [own])] if pool == "a" else [])
        assert all(
            each["securityContext"]["capabilities"] == {"drop": ["ALL"]} for each in pod.get("initContainers", ())
        )


@every_values
def test_secrets_are_files_and_not_shared(values: Manifest) -> None:
    """No secret is in the environment, and no two processes share a secret."""
    secrets = {}
    for name, pod in pods(render(values)):
        variables = environment(pod)
        assert not {"TASKHERD_DATABASE_URL", "TASKHERD_AMQP_URL", "TASKHERD_SECRET_KEY"} & variables.keys()
        secrets[name] = next(volume["secret"]["secretName"] for volume in pod["volumes"] if volume["name"] == "secrets")
    assert len(set(secrets.values())) == len(secrets) == (6 if values else 4)


@every_values
def test_the_grace_period_of_a_pod_exceeds_that_of_the_process(values: Manifest) -> None:
    """The grace period of each pod is longer than TASKHERD_GRACE, which equals the chart's value."""
    processes = [pod for name, pod in pods(render(values)) if not name.endswith(NOT_PROCESSES)]
    assert processes
    for pod in processes:
        grace = durations.parse(environment(pod)["TASKHERD_GRACE"])
        assert grace == values.get("grace", Settings.model_fields["grace"].default)
        assert pod["terminationGracePeriodSeconds"] > grace


@every_values
def test_a_runner_keeps_its_name_and_disk_and_has_time_to_pause_its_agents(values: Manifest) -> None:
    """It is a StatefulSet with a disk per pod and no name of its own choosing, and the image's mode counts."""
    for pool, runner in runners(render(values)).items():
        pod = pod_of(runner)
        assert [claim["metadata"]["name"] for claim in runner["spec"]["volumeClaimTemplates"]] == ["tasks"]
        assert {"name": "tasks", "mountPath": "/var/lib/taskherd"} in pod["containers"][0]["volumeMounts"]
        chosen = {"TASKHERD_RUNNER_NAME", "TASKHERD_RUNNER_DRAIN", "TASKHERD_RUNNER_ROOT"} & environment(pod).keys()
        assert chosen == ({"TASKHERD_RUNNER_DRAIN"} if pool == "gpu" else set())
        assert pod["terminationGracePeriodSeconds"] > durations.parse(environment(pod)["TASKHERD_GRACE"])


@every_values
def test_the_chart_sets_valid_settings(values: Manifest) -> None:
    """Every variable that the chart sets is a setting with a valid value."""
    for name, pod in pods(render(values)):
        variables = environment(pod)
        assert unknown_variables(variables) == (), name
        settings: dict[str, Any] = {
            variable.removeprefix("TASKHERD_").lower(): value
            for variable, value in variables.items()
            if variable.startswith("TASKHERD_") and not variable.endswith("_FILE")
        }
        Settings(**settings)


@every_values
def test_a_runner_has_no_secret_but_the_broker_url(values: Manifest) -> None:
    """A runner has no other secret, no network access to the database, and the URL of the API for its agents."""
    manifests = render(values)
    service = next(each for each in kinds(manifests, "Service") if each["metadata"]["name"].endswith("-api"))
    url = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    for runner in runners(manifests).values():
        pod = pod_of(runner)
        variables = environment(pod)
        assert {name for name in variables if name.endswith("_FILE")} == {"TASKHERD_AMQP_URL_FILE"}
        secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "secrets")
        assert [item["path"] for item in secret["items"]] == ["amqp-url"]
        assert variables["TASKHERD_AGENT_API_URL"] == url
    policy = next(each for each in kinds(manifests, "NetworkPolicy") if each["metadata"]["name"].endswith("-runner"))
    assert 5432 not in {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", ())}


@every_values
def test_the_operations_ports_are_never_published(values: Manifest) -> None:
    """They are in headless Services, with not-ready pods, which ServiceMonitors find; the API has one more."""
    manifests = render(values)
    services = {each["metadata"]["name"].partition("-")[2]: each for each in kinds(manifests, "Service")}
    assert services.keys() == {"worker", "api", "api-ops", "runner"}
    ports = {name: [port["name"] for port in each["spec"]["ports"]] for name, each in services.items()}
    assert ports == {"worker": ["ops"], "api": ["http"], "api-ops": ["ops"], "runner": ["ops"]}
    for name in ("worker", "api-ops", "runner"):
        assert services[name]["spec"]["clusterIP"] == "None"
        assert services[name]["spec"]["publishNotReadyAddresses"] is True
    for monitor in kinds(manifests, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        [found] = [
            name
            for name, each in services.items()
            if wanted <= each["metadata"]["labels"].items() and monitor["spec"]["endpoints"][0]["port"] in ports[name]
        ]
        assert found.removesuffix("-ops") == monitor["metadata"]["name"].partition("-")[2]
    documented = set(re.findall(r"`NAME-([a-z-]+)`", OPERATIONS))
    assert {"worker", "api-ops", "runner"} <= documented


@every_values
def test_the_probes_use_the_operations_port(values: Manifest) -> None:
    """Startup and liveness probes query /livez, readiness probes /readyz, on the port that the process opens."""
    for name, pod in pods(render(values)):
        if name.endswith(NOT_PROCESSES):
            continue
        (container,) = pod["containers"]
        assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")} == {"/livez"}
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        port = next(port["containerPort"] for port in container["ports"] if port["name"] == "ops")
        assert environment(pod)["TASKHERD_OPS_PORT"] == str(port)


@every_values
def test_the_schema_is_migrated_before_the_processes_start(values: Manifest) -> None:
    """The migration job is a hook before install and upgrade, and the processes never migrate."""
    manifests = render(values)
    (job,) = kinds(manifests, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (container,) = pod_of(job)["containers"]
    assert container["args"] == ["db", "upgrade", "--grants", "/etc/taskherd/grants/grants.sql"]
    (grants,) = (each for each in kinds(manifests, "ConfigMap") if each["metadata"]["name"].endswith("-grants"))
    assert grants["data"] == {"grants.sql": (ROOT / "deploy" / "postgres" / "grants.sql").read_text()}
    hook, before = job["metadata"]["annotations"], grants["metadata"]["annotations"]
    assert before["helm.sh/hook"] == hook["helm.sh/hook"]
    assert int(before["helm.sh/hook-weight"]) < int(hook["helm.sh/hook-weight"])
    assert {"name": "grants", "mountPath": "/etc/taskherd/grants", "readOnly": True} in container["volumeMounts"]
    assert {"name": "grants", "configMap": {"name": grants["metadata"]["name"]}} in pod_of(job)["volumes"]
    for name, pod in pods(manifests):
        assert name.endswith(NOT_PROCESSES) or environment(pod)["TASKHERD_MIGRATE"] == "never"


def test_the_privileges_of_other_roles_are_left_alone() -> None:
    """With roles of another kind, the job only migrates."""
    manifests = render({"migration": {"grants": False}})
    (job,) = kinds(manifests, "Job")
    assert pod_of(job)["containers"][0]["args"] == ["db", "upgrade"]
    assert list(kinds(manifests, "ConfigMap")) == []


def test_settings_of_one_process_override_common_settings() -> None:
    """A setting for one process overrides the setting for all."""
    environments = {name: environment(pod) for name, pod in pods(render(ALL))}
    assert environments["herd-worker"]["TASKHERD_LOG_LEVEL"] == "info"
    assert environments["herd-api"]["TASKHERD_LOG_LEVEL"] == "debug"
    assert environments["herd-worker"]["TASKHERD_AGENT_LOST_AFTER"] == "45s"
    assert {each["TASKHERD_REPORT_PARTITIONS"] for name, each in environments.items() if name != "herd-migrate"} == {
        "12"
    }


@pytest.mark.parametrize(
    ("name", "common", "own"), [("API_CREATE_RATE", 60, 0), ("API_TRUSTED_PROXIES", "10.0.0.0/8", "")]
)
def test_an_empty_setting_of_one_process_overrides_a_common_setting(name: str, common: object, own: object) -> None:
    """0 and an empty text are values like any other."""
    seen = dict(pods(render({"settings": {name: common}, "api": {"settings": {name: own}}})))
    found = [environment(seen[f"taskherd-{process}"])[f"TASKHERD_{name}"] for process in ("worker", "api")]
    assert found == [str(common), str(own)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(134_217_728, "134217728"), (1_000_000.0, "1000000"), (0.25, "0.25"), (True, "true"), ("1e6 B", "1e6 B")],
)
def test_a_setting_reaches_all_processes_as_it_is_written(value: object, text: str) -> None:
    """Large numbers have no exponent, also where Helm has read them as floats; other values stay as they are."""
    manifests = render({"settings": {"LOG_BYTES_MOST": value}, "operator": {"enabled": True}})
    found = {name: environment(pod).get("TASKHERD_LOG_BYTES_MOST") for name, pod in pods(manifests)}
    names = [f"taskherd-{process}" for process in ("worker", "api", "runner", "operator")]
    assert {name: found[name] for name in names} == dict.fromkeys(names, text)


@pytest.mark.parametrize(
    ("values", "senders"),
    [
        ({}, {"COMMAND_SENDERS": "taskherd-api,taskherd-operator"}),
        (
            {"settings": {"COMMAND_SENDERS": "a", "REPORT_SENDERS": "a=*"}},
            {"COMMAND_SENDERS": "a", "REPORT_SENDERS": "a=*"},
        ),
        ({"worker": {"settings": {"COMMAND_SENDERS": "b,c"}}}, {"COMMAND_SENDERS": "b,c"}),
        ({"settings": {"AMQP_PREFIX": "team.a"}}, {"COMMAND_SENDERS": "team.a-api,team.a-operator"}),
        ({"settings": {"COMMAND_SENDERS": ""}}, {"COMMAND_SENDERS": ""}),
        (
            {"settings": {"COMMAND_SENDERS": "d"}, "worker": {"settings": {"COMMAND_SENDERS": ""}}},
            {"COMMAND_SENDERS": ""},
        ),
    ],
    ids=["default", "all", "worker", "prefix", "none", "worker none"],
)
def test_operators_can_replay_what_workers_accept(values: Manifest, senders: dict[str, str]) -> None:
    """The operator's pod knows the senders that workers accept, has the URLs that commands need, and reaches both."""
    manifests = render({**values, "operator": {"enabled": True}})
    seen = dict(pods(manifests))
    for process in ("worker", "operator"):
        variables = environment(seen[f"taskherd-{process}"])
        found = {name: value for name, value in variables.items() if name.endswith("_SENDERS")}
        assert found == {f"TASKHERD_{name}": value for name, value in senders.items()}, process
    operator = seen["taskherd-operator"]
    assert {"TASKHERD_DATABASE_URL_FILE", "TASKHERD_AMQP_URL_FILE"} <= environment(operator).keys()
    secret = next(volume["secret"] for volume in operator["volumes"] if volume["name"] == "secrets")
    assert [item["path"] for item in secret["items"]] == ["database-url", "amqp-url"]
    policies = {each["metadata"]["name"]: each["spec"] for each in kinds(manifests, "NetworkPolicy")}
    policy = policies["taskherd-operator"]
    labels = next(each for each in kinds(manifests, "Deployment") if each["metadata"]["name"] == "taskherd-operator")
    assert policy["podSelector"]["matchLabels"].items() <= labels["spec"]["template"]["metadata"]["labels"].items()
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 5432, 5672}
    assert policy["ingress"] == []
    assert "taskherd-operator" not in {name for name, _ in pods(render(values))}


def test_extra_variables_and_volumes_reach_every_container() -> None:
    """What all containers have comes first, then what one process has; the chart's own come before both."""
    seen = dict(pods(render(ALL)))
    for name, pod in seen.items():
        (container,) = pod["containers"]
        assert environment(pod)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318", name
        assert container["envFrom"][0] == {"configMapRef": {"name": "everywhere"}}, name
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"], name
        assert {"name": "shared", "emptyDir": {}} in pod["volumes"], name
        mounted = {each["name"] for each in container["volumeMounts"]} - {"tasks"}
        assert mounted <= {each["name"] for each in pod["volumes"]}, name
    assert environment(seen["herd-worker"])["OTEL_RESOURCE_ATTRIBUTES"] == "team=herd"
    assert "OTEL_RESOURCE_ATTRIBUTES" not in environment(seen["herd-api"])
    assert environment(seen["herd-migrate"])["PGOPTIONS"] == "-c statement_timeout=0"
    assert seen["herd-runner-default"]["containers"][0]["envFrom"][1:] == [{"secretRef": {"name": "model-keys"}}]
    assert {"name": "cache", "mountPath": "/cache", "readOnly": True} in seen["herd-runner-gpu"]["containers"][0][
        "volumeMounts"
    ]
    for pod in dict(pods(render({}))).values():
        assert "envFrom" not in pod["containers"][0]


def test_every_process_may_send_to_the_additional_addresses() -> None:
    """``networkPolicy.extraEgress`` is part of the policy of every process, for example for a collector of traces."""
    (rule,) = ALL["networkPolicy"]["extraEgress"]
    policies = list(kinds(render(ALL), "NetworkPolicy"))
    assert len(policies) == 5
    assert all(rule in policy["spec"]["egress"] for policy in policies)


def test_each_pool_of_runners_is_a_workload_of_its_own() -> None:
    """A pool has its own replicas, user, image, resources and environment; ``runner`` has what it leaves out."""
    manifests = render(ALL)
    pools = runners(manifests)
    default, gpu = pools["default"], pools["gpu"]
    assert {each["metadata"]["name"] for each in pools.values()} == {"herd-runner-default", "herd-runner-gpu"}
    assert (default["spec"]["replicas"], gpu["spec"]["replicas"]) == (3, 2)
    containers = {name: pod_of(each)["containers"][0] for name, each in pools.items()}
    assert containers["default"]["image"] == "registry.example.com/agents:7"
    assert containers["gpu"]["image"] == "registry.example.com/gpu-agents:8"
    assert containers["gpu"]["resources"] == {"requests": {"cpu": "4", "memory": "1Gi"}, "limits": {"memory": "64Gi"}}
    assert containers["gpu"]["envFrom"][1:] == [{"secretRef": {"name": "gpu-keys"}}]
    assert pod_of(gpu)["nodeSelector"] == {"accelerator": "a100"}
    assert "nodeSelector" not in pod_of(default)
    secrets = {
        name: volume["secret"]["secretName"]
        for name, each in pools.items()
        for volume in pod_of(each)["volumes"]
        if volume["name"] == "secrets"
    }
    assert secrets == {"default": "taskherd-runner", "gpu": "taskherd-runner-gpu"}
    for each in pools.values():
        others = [other for other in pools.values() if other is not each]
        selector = each["spec"]["selector"]["matchLabels"].items()
        assert selector <= each["spec"]["template"]["metadata"]["labels"].items()
        assert not any(selector <= other["spec"]["template"]["metadata"]["labels"].items() for other in others)


@pytest.mark.parametrize("everywhere", [True, False], ids=["all processes", "runners"])
def test_a_pool_is_named_by_itself_alone(*, everywhere: bool) -> None:
    """A ``RUNNER_POOL`` that is left from the time before pools puts no runner of another pool into its own."""
    pools: Manifest = {"pools": [{"name": "own"}, {"name": "gpu"}]}
    left = {"settings": {"RUNNER_POOL": "own"}}
    manifests = render({**left, "runner": pools} if everywhere else {"runner": {**left, **pools}})
    found = {pool: each["metadata"]["name"] for pool, each in runners(manifests).items()}
    assert found == {"own": "taskherd-runner-own", "gpu": "taskherd-runner-gpu"}


@pytest.mark.parametrize("everywhere", [True, False], ids=["all processes", "runners"])
def test_agents_reach_the_api_at_another_address(*, everywhere: bool) -> None:
    """The setting replaces the address of the Service, whether it is that of all processes or of runners."""
    own = {"settings": {"AGENT_API_URL": "https://tasks.example.com"}}
    (runner,) = runners(render(own if everywhere else {"runner": own})).values()
    assert environment(pod_of(runner))["TASKHERD_AGENT_API_URL"] == "https://tasks.example.com"


def test_all_pools_are_scraped_and_have_network_access() -> None:
    """The Service, the NetworkPolicy and the PodDisruptionBudget of runners select the pods of every pool."""
    manifests = render(ALL)
    labels = [each["spec"]["template"]["metadata"]["labels"].items() for each in runners(manifests).values()]
    selectors = [
        each["spec"].get("podSelector", each["spec"].get("selector"))
        for each in kinds(manifests, "NetworkPolicy", "Service", "PodDisruptionBudget")
        if each["metadata"]["name"] == "herd-runner"
    ]
    assert len(selectors) == 3
    for selector in selectors:
        wanted = selector.get("matchLabels", selector).items()
        assert all(wanted <= each for each in labels)


def test_the_documented_pools_are_valid() -> None:
    """The example of values in docs/operations.md renders its two pools."""
    (block,) = re.findall(r"(?ms)^```yaml\n(runner:.*?)^```$", (ROOT / "docs" / "operations.md").read_text("utf-8"))
    values = yaml.safe_load(block)
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(chart.merge_values(values))
    assert runners(render(values)).keys() == {"default", "gpu"}


def test_the_url_of_a_standby_is_a_file() -> None:
    """Only the API reads from a standby, and only when its Secret has the URL."""
    for key in ("", "read-url"):
        for name, pod in pods(render({"secrets": {"api": {"databaseReadUrl": key}}})):
            if name.endswith("-migrate"):
                continue
            wanted = bool(key) and name == "taskherd-api"
            secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "secrets")
            (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "secrets")
            files = {f"{mount['mountPath']}/{item['path']}": item["key"] for item in secret["items"]}
            path = environment(pod).get("TASKHERD_DATABASE_READ_URL_FILE")
            assert (path is not None) is wanted, name
            assert not wanted or files[str(path)] == key


def test_sandboxes_get_what_bubblewrap_needs() -> None:
    """Only pods of runners that ask for it are less restricted, and their agents' ids exist in the pod."""
    pools = [{"name": "open", "sandboxes": True, "agentUids": "20000-59999"}, {"name": "usual"}]
    manifests = render({"runner": {"pools": pools}})
    for manifest in kinds(manifests, "StatefulSet"):
        kubernetes_validate.validate(manifest, NEWEST, strict=True)
    for name, pod in pods(manifests):
        context = pod["containers"][0]["securityContext"]
        found = (pod.get("hostUsers"), context.get("procMount"), context.get("seccompProfile"))
        is_open = name == "taskherd-runner-open"
        assert found == ((False, "Unmasked", {"type": "Unconfined"}) if is_open else (None, None, None)), name
    with pytest.raises(helm.HelmError, match="the ids 0-65535 only"):
        render({"runner": {"sandboxes": True}})


def test_a_name_too_long_for_a_stateful_set_is_refused() -> None:
    """Kubernetes adds a hash to a StatefulSet's name to make a label of at most 63 characters."""
    with pytest.raises(helm.HelmError, match="shorten the release's name"):
        render({"nameOverride": "h" * 30, "runner": {"pools": [{"name": "p" * 30}]}})


def test_keda_counts_the_queues_that_workers_consume() -> None:
    """The pattern matches reports, every partition, the commands and the claims of this prefix, and no other queue."""
    manifests = render(ALL)
    (scaled,) = kinds(manifests, "ScaledObject")
    pattern = re.compile(scaled["spec"]["triggers"][0]["metadata"]["queueName"])
    assert all(
        pattern.search(f"team.a.{queue}") for queue in ("reports", "reports.0", "reports.11", "commands", "claims")
    )
    assert not any(
        pattern.search(queue) for queue in ("team.a.dead", "team.a.work.default", "teamxa.reports", "taskherd.reports")
    )
    (worker,) = (each for each in kinds(manifests, "Deployment") if each["metadata"]["name"] == "herd-worker")
    assert "replicas" not in worker["spec"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == "herd-worker"


def test_the_chart_ships_the_tested_rules_and_dashboard() -> None:
    """The chart contains the rules of deploy/prometheus, with the URL of the runbook, and the dashboard."""
    manifests = render(ALL)
    (rule,) = kinds(manifests, "PrometheusRule")
    groups = [
        group
        for path in ("worker", "api", "runner")
        for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules" / f"{path}.yml").read_text())["groups"]
    ]
    expected = yaml.safe_load(
        yaml.safe_dump(groups).replace("docs/runbook.md", "https://runbooks.example.com/taskherd")
    )
    assert rule["spec"]["groups"] == expected
    (dashboard,) = (each for each in kinds(manifests, "ConfigMap") if each["metadata"]["name"].endswith("-dashboard"))
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
        {"api": {"settings": {"DATABASE_READ_URL": "postgresql://…"}}},
        {"settings": {"agent_lost_after": "30s"}},
        {"api": {"settings": {"API_PORT": 8080}}},
        {"settings": {"API_HOST": "127.0.0.1"}},
        {"image": {"digest": "latest"}},
        {"ca": {"secret": "a", "configMap": "b"}},
        {"runner": {"pools": [{"replicas": 2}]}},
        {"runner": {"pools": [{"name": "GPU"}]}},
        {"runner": {"pools": [{"name": "gpu", "settings": {"RUNNER_POOL": "other"}}]}},
        {"extraEnv": {"A": "b"}},
    ],
    ids=str,
)
def test_invalid_values_are_rejected(values: Manifest) -> None:
    """values.schema.json rejects typos, secrets among the settings, and numbers out of range."""
    with helm.Chart.load(str(CHART)) as chart, pytest.raises(helm.HelmError):
        chart.validate_schema(chart.merge_values(values))


@every_values
def test_valid_values_are_accepted(values: Manifest) -> None:
    """The schema accepts the defaults and all options; ``helm lint`` reports no error."""
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(chart.merge_values(values))
    assert helm.lint(str(CHART))["errors"] == []


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({}, ["runner=default,taskherd-runner-0"]),
        (
            {"runner": {"settings": {"RUNNER_POOL": "own"}, "replicas": 2}},
            ["runner=own,taskherd-runner-0,taskherd-runner-1"],
        ),
        ({"runner": {"pools": [{"name": "default"}]}}, ["runner=default,taskherd-runner-default-0"]),
        (
            {
                "runner": {
                    "pools": [{"name": "default"}, {"name": "gpu", "replicas": 2, "secret": OWN}, {"name": "small"}]
                }
            },
            [
                "runner=default,taskherd-runner-default-0,small,taskherd-runner-small-0",
                "runner-gpu=gpu,taskherd-runner-gpu-0,taskherd-runner-gpu-1",
            ],
        ),
    ],
    ids=["no pools", "another pool", "default", "several"],
)
def test_the_notes_name_the_pods_of_runners(values: Manifest, options: list[str], tmp_path: Path) -> None:
    """After an installation, the operator is told the ``--runner`` of each user that the pods use, and it is enough.

    A pool without a Secret of its own uses that of all runners, and so its user.
    """
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(chart.merge_values(values))
        rendered = chart.render(values, name="taskherd", namespace="prod")
    [notes] = [text for path, text in rendered.items() if path.endswith("NOTES.txt")]
    named = dict(re.findall(r"--runner (\S+) .*the Secret (\S+) has", notes))
    assert {*named} == {*options}
    arguments = [argument for option in named for argument in ("--runner", option)]
    for option in named:
        (tmp_path / option.partition("=")[0]).write_text("s3cr3t")
    script = ROOT / "deploy" / "rabbitmq" / "users.py"
    printed = subprocess.run(
        [sys.executable, script, tmp_path, *arguments], capture_output=True, check=True, timeout=30
    )
    reads = {each["user"]: each["read"] for each in json.loads(printed.stdout)["permissions"]}
    for pool, workload in runners(render(values)).items():
        secret = next(each["secret"] for each in pod_of(workload)["volumes"] if each["name"] == "secrets")["secretName"]
        (option,) = (option for option, of in named.items() if of == secret)
        pods_of_pool = [f"{workload['metadata']['name']}-{index}" for index in range(workload["spec"]["replicas"])]
        for target in ([pool] if pool else []) + pods_of_pool:
            assert re.search(reads[f"taskherd-{option.partition('=')[0]}"], f"taskherd.work.{target}")
