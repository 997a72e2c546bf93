"""Helpers that know nothing of tasks, on which every other package may build."""
