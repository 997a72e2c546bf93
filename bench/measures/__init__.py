"""What can be measured, in the order of a full run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from bench.measures.adapter import adapter
from bench.measures.backlog import backlog
from bench.measures.commands import commands
from bench.measures.crowd import crowd
from bench.measures.deployments import distance, prefork, rabbitmq
from bench.measures.expiry import expiry
from bench.measures.growth import growth
from bench.measures.latency import get, submit
from bench.measures.memory import memory
from bench.measures.options import keys, telemetry
from bench.measures.payloads import payloads
from bench.measures.plain import celery
from bench.measures.push import push
from bench.measures.server import server
from bench.measures.start import start
from bench.measures.stored import stored
from bench.measures.streams import streams
from bench.measures.throughput import cpu, sleeps, throughput
from bench.measures.waiting import waiting
from bench.run import Findings, Run

MEASURES: Final[Mapping[str, Callable[[Run], Awaitable[Findings]]]] = {
    "submit": submit,
    "get": get,
    "push": push,
    "commands": commands,
    "cpu": cpu,
    "server": server,
    "keys": keys,
    "telemetry": telemetry,
    "throughput": throughput,
    "celery": celery,
    "backlog": backlog,
    "sleeps": sleeps,
    "payloads": payloads,
    "memory": memory,
    "crowd": crowd,
    "stored": stored,
    "expiry": expiry,
    "waiting": waiting,
    "streams": streams,
    "growth": growth,
    "prefork": prefork,
    "rabbitmq": rabbitmq,
    "distance": distance,
    "adapter": adapter,
    "start": start,
}
