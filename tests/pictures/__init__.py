"""Pictures of terminals for the documentation, taken of real runs: ``make pictures``."""
