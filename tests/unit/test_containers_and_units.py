"""Files of config/ for Docker, Compose, Kubernetes and systemd: valid, hardened, without secrets, and consistent."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest
import yaml
from kombu.transport.redis import PRIORITY_STEPS, Channel

from config.celeryconfig import task_time_limit
from mcp_celery.demo.server import server
from mcp_celery.settings import ENV_PREFIX, Settings
from tests.support.containers_and_units import (
    DOCKER,
    JSON,
    KUBERNETES,
    SYSTEMD,
    compose_file,
    containers,
    dockerfile,
    image_env,
    image_files,
    kubernetes_documents,
    kubernetes_objects,
    seconds,
    settings_named,
    unit,
)
from tests.support.programs import ROOT
from tests.support.schemas import COMPOSE, KUBERNETES_OBJECTS, assert_valid

FILES: Final = sorted(path for folder in (DOCKER, KUBERNETES, SYSTEMD) for path in folder.iterdir())
UNITS: Final = sorted(path.name for path in SYSTEMD.glob("*.service"))
DEFINITIONS: Final = {
    "apps/v1": "io.k8s.api.apps.v1",
    "v1": "io.k8s.api.core.v1",
    "policy/v1": "io.k8s.api.policy.v1",
    "keda.sh/v1alpha1": "sh.keda.v1alpha1",
}
OPEN_REQUESTS_SECONDS: Final = 3
"""How long a server that ends waits for open requests: `timeout_graceful_shutdown` of `mcp-celery serve`."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_setting_of_ours_that_a_file_names_is_there(path: Path) -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    assert settings_named([path.read_text()]) - known == set()


def is_secret(name: str) -> bool:
    return re.search(r"PASS(WORD)?$|_KEYS?$|_AUTH$|_TOKEN$|SECRET", name) is not None


def variables(value: Any) -> Iterator[tuple[str, str]]:
    """Each variable of an environment in a file, with what it is set to."""
    if isinstance(value, list):
        for one in cast("list[Any]", value):
            yield from variables(one)
    if isinstance(value, dict):
        parts = cast(JSON, value)
        if "name" in parts and "value" in parts:
            yield str(parts["name"]), str(parts["value"])
        for name, part in parts.items():
            if isinstance(part, str | int):
                yield name, str(part)
            yield from variables(part)


@pytest.mark.parametrize("path", [*DOCKER.glob("*.y*ml"), *KUBERNETES.iterdir()], ids=lambda path: path.name)
def test_no_file_holds_a_secret(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    found = [(name, value) for name, value in variables(documents) if is_secret(name)]
    assert [one for one in found if not one[1].startswith("${")] == []
    assert re.findall(r"://\w*:(?!\$\{)[^@\s]+@", path.read_text()) == []
    assert "Secret" not in [one.get("kind") for one in documents]


class TestDockerfile:
    """The rules are hadolint's and Docker's own."""

    def test_only_what_runs_is_in_the_image_and_not_as_root(self) -> None:
        found = dockerfile()
        assert [one.stage for one in found if one.name == "FROM"] == [1, 2]
        users = [one for one in found if one.name == "USER"]
        assert [(one.stage, one.value) for one in users] == [(2, "10001:10001")]
        # After it nothing is written any more.
        after = found[found.index(users[0]) + 1 :]
        assert {one.name for one in after} <= {"EXPOSE", "STOPSIGNAL", "CMD"}
        copied = [one.value for one in found if one.name == "COPY" and "--from" in one.value]
        assert copied == ["--from=build /opt/venv /opt/venv"]

    def test_base_images_and_packages_are_pinned(self) -> None:
        found = dockerfile()
        (base,) = [one.value for one in found if one.stage == 0 and one.name == "ARG"]
        assert re.fullmatch(r"PYTHON=3\.\d+-slim-\w+", base)
        assert {one.value.split(" AS ")[0] for one in found if one.name == "FROM"} == {"python:${PYTHON}"}
        installs = [
            command
            for one in found
            if one.name == "RUN"
            for command in one.value.split("&&")
            if "pip install" in command
        ]
        assert len(installs) == 2
        for command in installs:
            assert "--require-hashes --requirement /tmp/uv.txt" in command or (
                "--constraint constraints.txt --build-constraint constraints.txt" in command
            )
        assert "\nuv==" in (ROOT / "constraints.txt").read_text()

    def test_the_dockerfile_has_no_instruction_that_hadolint_would_refuse(self) -> None:
        found = dockerfile()
        assert {one.name for one in found} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE"} | {
            "STOPSIGNAL",
            "CMD",
        }
        assert all(one.value.startswith("/") for one in found if one.name == "WORKDIR")
        runs = [one.value for one in found if one.name == "RUN"]
        assert not [one for one in runs if re.search(r"\bsudo\b|\bcd \b|apt(-get)? |\| *sh\b|curl|wget", one)]
        assert all("--no-cache" in one or "--mount=type=cache" in one for one in runs if "pip install" in one)
        assert all(one.value.startswith("[") for one in found if one.name == "CMD")
        assert not [one for one in found if one.name in ("ARG", "ENV") and is_secret(one.value.partition("=")[0])]

    def test_the_dockerfile_copies_files_that_exist_and_are_sent_to_the_builder(self) -> None:
        ignored, *allowed = [
            line for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
        ]
        assert ignored == "*"
        sent = {line[1:] for line in allowed if line.startswith("!")}
        copied = {
            source
            for one in dockerfile()
            if one.name == "COPY" and "--from" not in one.value
            for source in one.value.split()[:-1]
        }
        assert copied == sent
        assert all((ROOT / source).exists() for source in copied)
        # What the package's build needs.
        built: JSON = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wheel = built["tool"]["hatch"]["build"]["targets"]["wheel"]
        needed = {"README.md", "LICENSE", *wheel["packages"], *wheel["force-include"]}
        assert {name.partition("/")[0] for name in needed} <= copied
        # A later line wins: files with secrets stay away from the folders that are sent.
        assert {"**/*.env", "config/docker"} <= set(allowed[len(sent) :])

    def test_extras_and_modules_of_the_dockerfile_exist(self) -> None:
        (extras,) = [one.value for one in dockerfile() if one.name == "ARG" and one.stage == 1]
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(extras.removeprefix("EXTRAS=").split(",")) <= set(known)
        assert dict(image_files()).items() >= {"config": "config", "workers": "workers"}.items()
        assert image_env()["MCP_CELERY_SERVER"] == "workers.demo:server"


SERVICES: Final[dict[str, JSON]] = compose_file("compose.yaml")["services"]
OURS: Final = ("web", "worker", "flower")


class TestCompose:
    @pytest.mark.parametrize("name", ["compose.yaml", "compose.rabbitmq.yaml"])
    def test_the_files_fit_the_schema(self, name: str) -> None:
        assert_valid("compose_file", compose_file(name), COMPOSE)

    def test_a_misspelt_option_is_noticed(self) -> None:
        wrong = compose_file("compose.yaml")
        wrong["services"]["web"]["stop_grace_periods"] = "1s"
        with pytest.raises(AssertionError, match="stop_grace_periods"):
            assert_valid("compose_file", wrong, COMPOSE)

    @pytest.mark.parametrize("name", OURS)
    def test_our_containers_may_do_nothing_that_they_need_not(self, name: str) -> None:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["depends_on"] == {"store": {"condition": "service_healthy"}}

    def test_images_are_pinned_and_ports_are_open_on_this_machine_only(self) -> None:
        services: list[JSON] = [*SERVICES.values(), *compose_file("compose.rabbitmq.yaml")["services"].values()]
        images = {service["image"] for service in services if "image" in service}
        assert [one for one in images - {"mcp-celery"} if not re.search(r":v?\d", one)] == []
        ports = [port for service in services for port in service.get("ports", ())]
        assert ports
        assert [port for port in ports if not port.startswith("127.0.0.1:")] == []

    def test_each_service_that_others_wait_for_has_a_health_check(self) -> None:
        files: list[dict[str, JSON]] = [SERVICES, compose_file("compose.rabbitmq.yaml")["services"]]
        services = {name: service for services in files for name, service in services.items() if "image" in service}
        needed = {name for services in files for one in services.values() for name in one.get("depends_on", ())}
        assert needed == {"store", "broker"}
        assert [name for name in {*needed, *OURS} if "healthcheck" not in services[name]] == []

    def test_there_are_two_workers_with_time_for_their_jobs(self) -> None:
        assert SERVICES["worker"]["scale"] == 2
        assert seconds(SERVICES["worker"]["stop_grace_period"]) > task_time_limit
        drained = float(SERVICES["web"]["environment"]["MCP_CELERY_DRAIN_SECONDS"])
        assert seconds(SERVICES["web"]["stop_grace_period"]) > drained + OPEN_REQUESTS_SECONDS

    def test_prometheus_scrapes_ports_that_are_open(self) -> None:
        jobs: list[JSON] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
        scraped = {(one["names"][0], one["port"]) for job in jobs for one in job["dns_sd_configs"]}
        assert scraped == {
            ("web", SERVICES["web"]["environment"]["MCP_CELERY_HEALTH_PORT"]),
            ("worker", SERVICES["worker"]["environment"]["MCP_CELERY_WORKER_HEALTH_PORT"]),
            ("flower", 5555),
        }
        assert "--port=5555" in SERVICES["flower"]["command"]
        assert SERVICES["web"]["environment"].items() >= {"MCP_CELERY_TELEMETRY": "prometheus"}.items()
        assert SERVICES["worker"]["environment"].items() >= {"MCP_CELERY_TELEMETRY": "prometheus"}.items()

    def test_files_that_are_mounted_are_there(self) -> None:
        mounted = [volume.split(":")[0] for one in SERVICES.values() for volume in one.get("volumes", ())]
        files = [one for one in mounted if one.startswith(".")]
        assert files
        assert [one for one in files if not (DOCKER / one).is_file()] == []

    def test_rabbitmq_waits_for_jobs_as_long_as_they_may_last(self) -> None:
        config = compose_file("compose.rabbitmq.yaml")["configs"]["rabbitmq"]["content"]
        (limit,) = re.findall(r"consumer_timeout = (\d+)", config)
        assert int(limit) > task_time_limit * 1000


DOCUMENTS: Final = kubernetes_documents()
DEPLOYMENTS: Final = kubernetes_objects("Deployment")


class TestKubernetes:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
    def test_the_objects_fit_the_schemas(self, document: JSON) -> None:
        assert_valid(f"{DEFINITIONS[document['apiVersion']]}.{document['kind']}", document, KUBERNETES_OBJECTS)

    @pytest.mark.parametrize(
        ("kind", "path"),
        [("Deployment", "spec.template.spec.containers.0"), ("ScaledObject", "spec.triggers.0"), ("Service", "spec")],
    )
    def test_a_misspelt_field_is_noticed(self, kind: str, path: str) -> None:
        wrong = copy.deepcopy(next(one for one in DOCUMENTS if one["kind"] == kind))
        part: Any = wrong
        for step in path.split("."):
            part = part[int(step) if step.isdecimal() else step]
        part["misspelt"] = "x"
        with pytest.raises(AssertionError, match="misspelt"):
            assert_valid(f"{DEFINITIONS[wrong['apiVersion']]}.{kind}", wrong, KUBERNETES_OBJECTS)

    def test_containers_may_do_nothing_that_they_need_not(self) -> None:
        uid = int(next(one.value for one in dockerfile() if one.name == "USER").partition(":")[0])
        for pod, container in containers():
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] == uid
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False
            assert pod["enableServiceLinks"] is False
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert re.search(r":\d+\.\d+", container["image"])

    def test_secrets_are_mounted_where_the_settings_look(self) -> None:
        (config,) = kubernetes_objects("ConfigMap").values()
        file = Path(config["data"]["MCP_CELERY_REDIS_PASSWORD_FILE"])
        for pod, container in containers():
            (mount,) = [one for one in container["volumeMounts"] if one["name"] == "secrets"]
            (volume,) = [one for one in pod["volumes"] if one["name"] == "secrets"]
            assert mount["readOnly"] is True
            assert mount["mountPath"] == str(file.parent)
            assert [item["path"] for item in volume["secret"]["items"]] == [file.name]

    def test_selectors_find_their_pods(self) -> None:
        labels = {name: one["spec"]["template"]["metadata"]["labels"] for name, one in DEPLOYMENTS.items()}
        selectors: list[JSON] = [one["spec"]["selector"]["matchLabels"] for one in DEPLOYMENTS.values()]
        budgets = kubernetes_objects("PodDisruptionBudget")
        selectors += [one["spec"]["selector"]["matchLabels"] for one in budgets.values()]
        selectors += [one["spec"]["selector"] for one in kubernetes_objects("Service").values()]
        for selector in selectors:
            assert [name for name, found in labels.items() if found.items() >= selector.items()] != []
        assert set(budgets) == {"mcp-celery-web", "mcp-celery-worker"}

    def test_pods_have_time_to_end(self) -> None:
        web = DEPLOYMENTS["mcp-celery-web"]["spec"]["template"]["spec"]
        (container,) = web["containers"]
        env = {one["name"]: one.get("value") for one in container["env"]}
        paused = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        needed = paused + float(env["MCP_CELERY_DRAIN_SECONDS"]) + OPEN_REQUESTS_SECONDS
        assert web["terminationGracePeriodSeconds"] > needed
        worker = DEPLOYMENTS["mcp-celery-worker"]["spec"]["template"]["spec"]
        assert worker["terminationGracePeriodSeconds"] > task_time_limit

    def test_no_client_reaches_health_and_metrics(self) -> None:
        ports = [port["targetPort"] for one in kubernetes_objects("Service").values() for port in one["spec"]["ports"]]
        assert ports == ["http"]
        for name in ("mcp-celery-web", "mcp-celery-worker"):
            template = DEPLOYMENTS[name]["spec"]["template"]
            (container,) = template["spec"]["containers"]
            (health,) = [one["containerPort"] for one in container["ports"] if one["name"] == "health"]
            assert template["metadata"]["annotations"]["prometheus.io/port"] == str(health)
            (config,) = kubernetes_objects("ConfigMap").values()
            assert config["data"]["MCP_CELERY_TELEMETRY"] == "prometheus"
            assert {one[key]["httpGet"]["port"] for one in [container] for key in one if key.endswith("Probe")} == {
                "health"
            }

    def test_keda_counts_every_list_of_the_queue_for_workers_of_a_fixed_size(self) -> None:
        (scaled,) = kubernetes_objects("ScaledObject").values()
        spec = scaled["spec"]
        (container,) = DEPLOYMENTS[spec["scaleTargetRef"]["name"]]["spec"]["template"]["spec"]["containers"]
        slots = next(word.split("=")[1] for word in container["command"] if word.startswith("--concurrency="))
        assert spec["advanced"]["scalingModifiers"]["target"] == slots
        assert spec["minReplicaCount"] >= 2
        lists = [one["metadata"]["listName"] for one in spec["triggers"]]
        queue = f"mcp.{server.name}"
        # As kombu names them.
        assert lists == [f"{queue}{Channel.sep}{step}" if step else queue for step in PRIORITY_STEPS]
        assert spec["advanced"]["scalingModifiers"]["formula"] == " + ".join(one["name"] for one in spec["triggers"])
        (config,) = kubernetes_objects("ConfigMap").values()
        addresses = {
            f"redis://{one['metadata']['address']}/{one['metadata']['databaseIndex']}" for one in spec["triggers"]
        }
        assert addresses == {config["data"]["MCP_CELERY_REDIS_URL"]}
        known = set(kubernetes_objects("TriggerAuthentication"))
        assert {one["authenticationRef"]["name"] for one in spec["triggers"]} == known


class TestSystemd:
    @pytest.fixture
    def installed(self, tmp_path: Path) -> Path:
        """The units, for an installation in this environment."""
        for name in UNITS:
            text = (SYSTEMD / name).read_text()
            (tmp_path / name).write_text(text.replace("/srv/mcp-celery/.venv/bin", str(Path(sys.executable).parent)))
        return tmp_path

    def analyze(self, *arguments: str) -> str:
        if shutil.which("systemd-analyze") is None:
            pytest.skip("there is no systemd-analyze")
        done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def test_systemd_finds_no_fault(self, installed: Path) -> None:
        assert self.analyze("verify", "--man=no", *(str(installed / name) for name in UNITS)) == ""

    def test_systemd_units_are_hardened(self, installed: Path) -> None:
        """20 is an exposure of 2.0, where an unhardened unit has 9.6."""
        self.analyze("security", "--offline=true", "--threshold=20", *(str(installed / name) for name in UNITS))

    @pytest.mark.parametrize("name", UNITS)
    def test_only_the_main_process_gets_the_signal_to_end(self, name: str) -> None:
        service = unit(name)
        assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
        assert service["EnvironmentFile"] == "/etc/mcp-celery.env"

    def test_workers_have_time_for_their_jobs(self) -> None:
        worker = unit("mcp-celery-worker@.service")
        assert seconds(worker["TimeoutStopSec"]) > task_time_limit
        assert worker["OOMPolicy"] == "continue"


BLOCK: Final = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """The words of each command of a program in the pages on deployment and upgrades."""
    blocks = [
        block for page in ("deployment", "upgrades") for block in BLOCK.findall((ROOT / f"docs/{page}.md").read_text())
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.split(r" [|&]+ ", line.partition("  #")[0]) for line in lines if not line.startswith("#")]
    return [shlex.split(one) for line in found for one in line if one.startswith(program + " ")]


class TestPages:
    def test_the_new_workers_of_an_upgrade_are_beside_the_old_ones(self) -> None:
        (sed,) = commands("sed")
        text = subprocess.run(sed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        deployment, budget = yaml.safe_load_all(text)
        old = DEPLOYMENTS["mcp-celery-worker"]
        for one in (deployment, budget):
            assert_valid(f"{DEFINITIONS[one['apiVersion']]}.{one['kind']}", one, KUBERNETES_OBJECTS)
            (selected,) = one["spec"]["selector"]["matchLabels"].items()
            assert selected in deployment["spec"]["template"]["metadata"]["labels"].items()
            assert selected not in old["spec"]["template"]["metadata"]["labels"].items()
        (image,) = [one["image"] for one in deployment["spec"]["template"]["spec"]["containers"]]
        assert image == "registry.example.com/mcp-celery:0.2.0"
        assert ["kubectl", "rollout", "status", f"deployment/{deployment['metadata']['name']}"] in commands("kubectl")

    def test_kubectl_commands_name_objects_and_files_that_exist(self) -> None:
        known = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in DOCUMENTS}
        named = {word for words in commands("kubectl") for word in words if re.match(r"(deployment|poddis\w+)/", word)}
        assert named - {"deployment/mcp-celery-worker-2"} <= known
        files = [word for words in commands("kubectl") for word in words if word.endswith(".yaml")]
        assert {KUBERNETES / Path(file).name for file in files} == set(KUBERNETES.iterdir())
        assert all((ROOT / file).is_file() for file in files)
        images = {container["name"]: container["image"].rpartition(":")[0] for _, container in containers()}
        (changed,) = [words[-1] for words in commands("kubectl") if words[1:3] == ["set", "image"]]
        name, _, image = changed.partition("=")
        assert images[name] == image.rpartition(":")[0]

    def test_the_secret_has_the_entries_that_the_objects_use(self) -> None:
        (create,) = [words for words in commands("kubectl") if words[1] == "create"]
        made = {word.split("=")[1] for word in create if word.startswith("--from-literal")}
        asked = set(re.findall(r"\bkey: ([\w-]+)", "\n".join(path.read_text() for path in KUBERNETES.iterdir())))
        assert made == asked
        assert create[4] == "mcp-celery"

    def test_compose_commands_name_services_that_exist(self) -> None:
        used: set[str] = set()
        for words in commands("docker compose"):
            assert (ROOT / words[words.index("--file") + 1]).is_file()
            if (verb := words[words.index("--file") + 2]) == "up":
                used |= {word for word in words[words.index(verb) + 1 :] if re.fullmatch(r"[a-z]+", word)}
        assert used == {"web", "worker", "flower"}
        stopped = [word for words in commands("docker stop") for word in words[4:]]
        assert stopped == ["mcp-celery-worker-1", "mcp-celery-worker-2"]
        (limit,) = [int(words[3]) for words in commands("docker stop")]
        assert limit == seconds(SERVICES["worker"]["stop_grace_period"])

    def test_systemctl_commands_name_units_that_exist(self) -> None:
        named = {word for words in commands("systemctl") for word in words if word.startswith("mcp-celery")}
        assert {re.sub(r"@\d*$", "@", word) + ".service" for word in named} == set(UNITS)
