"""A host's Celery settings that speak of our jobs by their names."""

task_annotations = {
    "mcp.annotated.tool.annotated": {"time_limit": 1},
    "mcp.annotated.tool.limited": {"rate_limit": None},
}
