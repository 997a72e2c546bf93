"""For every test: async tests run on asyncio, and hypothesis times nothing."""

import pytest
from hypothesis import HealthCheck, settings

# Not tests, but what workers import; some are broken on purpose.
collect_ignore_glob = ["support/*"]

settings.register_profile(
    "mcp_celery",
    deadline=None,  # a machine that is slow for a moment is no fault of the code
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("mcp_celery")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What anyio's plugin runs tests marked `anyio` on."""
    return "asyncio"
