"""Revision 2025-11-25, where tasks are a part of the core protocol (SEP-1686)."""
