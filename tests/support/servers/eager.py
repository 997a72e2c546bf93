"""Celery's settings of a host that runs its tests without workers."""

task_always_eager = True
task_eager_propagates = True
