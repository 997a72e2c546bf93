"""Checks of the Redis Cluster that keeps the tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mcp_celery.operate.doctor.findings import Finding, Findings
from mcp_celery.store import RedisBackend
from mcp_celery.store.cluster import SLOTS, ClusterView

URL: Final = "MCP_CELERY_REDIS_URL"
CLUSTER: Final = "the nodes of the Redis Cluster (docs/redis.md)"


async def check_cluster(backend: RedisBackend, namespaces: Iterable[str]) -> list[Finding]:
    """Ask each node of ``MCP_CELERY_REDIS_URL`` for the cluster, and say where each namespace is; no finding where the
    URL names no cluster.

    Args:
        backend: The store.
        namespaces: The namespaces of the servers that are known.
    """
    findings = Findings("cluster")
    if not backend.is_cluster:
        return findings.found
    view = await backend.cluster_view()
    for node, problem in view.problems.items():
        findings.warning(f"the node {node} cannot be asked: {problem}", URL)
    if not view.answered:
        findings.error("no node of the cluster answers", URL)
        return findings.found
    if view.covered < SLOTS:
        findings.error(f"{SLOTS - view.covered} of {SLOTS} slots have no master", CLUSTER)
    elif view.info.get("cluster_state") != "ok":
        findings.error(f"the state of the cluster is {view.info.get('cluster_state', 'unknown')}", CLUSTER)
    else:
        findings.ok(f"the cluster has {len(view.masters)} masters, and all slots are on them")
    for namespace in namespaces:
        _check_namespace(findings, view, namespace, backend.keys_of(namespace).root)
    return findings.found


def _check_namespace(findings: Findings, view: ClusterView, namespace: str, root: str) -> None:
    """Say which node keeps a namespace, and whether another one could take its place."""
    shard = view.shard_of(root)
    if shard is None:
        findings.error(f"no node has the slot of the namespace {namespace!r}", CLUSTER)
        return
    where = f"the tasks of {namespace!r} are on {shard.master[0]}:{shard.master[1]}"
    if shard.replicas:
        findings.ok(f"{where}; its replicas: {len(shard.replicas)}")
    else:
        findings.warning(f"{where}, which has no replica: they are lost with it", CLUSTER)
