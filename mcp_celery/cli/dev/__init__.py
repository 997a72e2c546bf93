"""Commands that start processes: `dev`, `demo` and `store`."""
