"""Breaks the package in small ways, one at a time, and sees that a test fails each time."""
