"""Clients without tasks: calls that wait for a job, and tools that poll tasks."""
