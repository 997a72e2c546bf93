"""A soak: tasks under load while workers, servers, the store and the broker are killed; then an audit."""
