"""The deployments that ``config/`` has to copy, read as Docker, Compose, Kubernetes and systemd read them."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, NamedTuple, cast

import yaml

from tests.support.programs import ROOT

CONFIG: Final = ROOT / "config"
DOCKER: Final = CONFIG / "docker"
KUBERNETES: Final = CONFIG / "kubernetes"
SYSTEMD: Final = CONFIG / "systemd"
JSON = dict[str, Any]
_INTERPOLATED: Final = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:?[-?])([^}]*))?\}|(\w+))")


@dataclass(frozen=True)
class Probe:
    """What asks a program how it is: a command, or a GET request.

    Attributes:
        argv: The command; empty: a request.
        url: The request.
    """

    argv: tuple[str, ...] = ()
    url: str = ""


@dataclass(frozen=True)
class Program:
    """One command line of a deployment.

    Attributes:
        argv: The command and its arguments.
        env: The variables that the deployment sets.
        probes: What asks how it is.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    probes: tuple[Probe, ...] = ()

    def placed(self, changes: Mapping[str, str], **env: str) -> Program:
        """The same where addresses, ports and folders are others.

        Args:
            changes: Texts by the patterns that they replace.
            env: Variables of its own.
        """

        def put(text: str) -> str:
            for pattern, found in changes.items():
                text = re.sub(pattern, lambda _, found=found: found, text)
            return text

        probes = tuple(Probe(tuple(map(put, one.argv)), put(one.url)) for one in self.probes)
        placed = {name: put(value) for name, value in self.env.items()}
        return replace(self, argv=tuple(map(put, self.argv)), env={**placed, **env}, probes=probes)


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, in the stage with this number."""

    stage: int
    name: str
    value: str


def dockerfile() -> list[Instruction]:
    """The instructions of the Dockerfile."""
    text = (DOCKER / "Dockerfile").read_text()
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    found: list[Instruction] = []
    stage = 0
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, value = line.partition(" ")
        stage += name == "FROM"
        found.append(Instruction(stage, name, " ".join(value.split())))
    return found


def image_env() -> dict[str, str]:
    """The variables that the image sets, but ``PATH``."""
    last = dockerfile()[-1].stage
    pairs = [shlex.split(one.value) for one in dockerfile() if one.name == "ENV" and one.stage == last]
    env = dict(pair.split("=", 1) for one in pairs for pair in one)
    del env["PATH"]
    return env


def image_files() -> list[tuple[str, str]]:
    """What the image has of the checkout: paths here, and in its working directory."""
    last = dockerfile()[-1].stage
    copied = [one.value.split() for one in dockerfile() if one.name == "COPY" and one.stage == last]
    return [(words[0], words[1]) for words in copied if not words[0].startswith("--from")]


def _interpolated(value: Any, env: Mapping[str, str]) -> Any:
    """A part of a Compose file, with its variables."""
    if isinstance(value, dict):
        return {name: _interpolated(part, env) for name, part in cast(JSON, value).items()}
    if isinstance(value, list):
        return [_interpolated(item, env) for item in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value

    def put(found: re.Match[str]) -> str:
        dollar, braced, operator, default, bare = found.groups()
        if dollar:
            return "$"
        put = env.get(braced or bare, "")
        if put or operator is None:
            return put
        assert operator == ":-", f"{braced} {default}"
        return default

    return _INTERPOLATED.sub(put, value)


def compose_file(name: str) -> JSON:
    """One file, as it stands there."""
    return yaml.safe_load((DOCKER / name).read_text())


def compose(env: Mapping[str, str], *files: str) -> dict[str, Program]:
    """The services.

    Args:
        env: The variables of its ``.env``.
        files: Further files, whose variables are added.
    """
    services: dict[str, JSON] = _interpolated(compose_file("compose.yaml"), env)["services"]
    for file in files:
        for name, service in _interpolated(compose_file(file), env)["services"].items():
            services.setdefault(name, {}).setdefault("environment", {}).update(service.get("environment", {}))
    return {name: _service(service) for name, service in services.items()}


def _service(service: JSON) -> Program:
    own = image_env() if service.get("image") == "mcp-celery" else {}
    env = {name: str(value) for name, value in service.get("environment", {}).items()}
    probes: list[Probe] = []
    if test := service.get("healthcheck", {}).get("test"):
        assert test[0] == "CMD"
        probes.append(Probe(tuple(test[1:])))
    return Program(tuple(service.get("command", ())), {**own, **env}, tuple(probes))


@cache
def kubernetes_documents() -> list[JSON]:
    """All objects of all files. Callers leave them as they are."""
    files = sorted(KUBERNETES.glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def kubernetes_objects(kind: str) -> dict[str, JSON]:
    """The objects of a kind by their names."""
    return {one["metadata"]["name"]: one for one in kubernetes_documents() if one["kind"] == kind}


def containers() -> Iterator[tuple[JSON, JSON]]:
    """The pods of all Deployments, each with its one container."""
    for deployment in kubernetes_objects("Deployment").values():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        yield pod, container


def kubernetes(settings: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, Program]:
    """The containers.

    Args:
        settings: What is changed in the ConfigMap.
        secrets: The Secret.
    """
    (config,) = kubernetes_objects("ConfigMap").values()
    return {one["name"]: _container(one, {**config["data"], **settings}, secrets) for _, one in containers()}


def _container(container: JSON, settings: Mapping[str, str], secrets: Mapping[str, str]) -> Program:
    env = {**image_env(), **settings}
    for one in container["env"]:
        if "value" in one:
            env[one["name"]] = one["value"]
        elif (key := one["valueFrom"]["secretKeyRef"])["key"] in secrets or not key.get("optional"):
            env[one["name"]] = secrets[key["key"]]
    argv = tuple(re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], word) for word in container["command"])
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    probes: list[Probe] = []
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container.get(name, {})
        if "exec" in probe:
            probes.append(Probe(tuple(probe["exec"]["command"])))
        elif probe:
            get = probe["httpGet"]
            probes.append(Probe(url=f"http://127.0.0.1:{ports[get['port']]}{get['path']}"))
    return Program(argv, env, tuple(dict.fromkeys(probes)))


def unit(name: str) -> Mapping[str, str]:
    """The section ``Service`` of a unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign] - its way to keep capitals
    parser.read(SYSTEMD / name)
    return parser["Service"]


def systemd(environment_file: Mapping[str, str]) -> dict[str, Program]:
    """The services.

    Args:
        environment_file: The file that they read.
    """
    return {
        name: _unit(unit(file), environment_file)
        for name, file in {
            "web": "mcp-celery-web.service",
            "worker": "mcp-celery-worker@.service",
            "flower": "mcp-celery-flower.service",
        }.items()
    }


def _unit(service: Mapping[str, str], env: Mapping[str, str]) -> Program:
    specifiers = {"%i": "1", "%%": "%"}
    command = re.sub(r"%.", lambda found: specifiers[found[0]], service["ExecStart"])
    argv = tuple(re.sub(r"\$\{(\w+)\}", lambda found: env[found[1]], word) for word in shlex.split(command))
    return Program(argv, env)


def seconds(text: str) -> float:
    """A time as Compose and systemd write it, such as ``65m``, ``65min``, ``20s`` or ``30``."""
    number, name = re.fullmatch(r"(\d+)(s|m|min|h)?", text).groups()  # type: ignore[union-attr]
    return int(number) * {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[name]


def settings_named(texts: Sequence[str]) -> set[str]:
    """The names of our settings in texts."""
    return set(re.findall(r"\bMCP_CELERY_[A-Z_]+\b", json.dumps(texts)))
