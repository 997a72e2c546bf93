"""A module that does not import."""

raise RuntimeError("this module is\nbroken on purpose")
