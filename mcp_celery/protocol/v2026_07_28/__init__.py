"""Revision 2026-07-28, where tasks are the extension ``io.modelcontextprotocol/tasks`` (SEP-2663)."""
