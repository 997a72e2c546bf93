"""``mcp-celery keygen``."""

from click.testing import CliRunner

from mcp_celery.cli.main import cli
from mcp_celery.settings import Settings


def test_keygen_prints_a_key_that_the_settings_accept_and_another_each_time() -> None:
    made = [CliRunner().invoke(cli, ["keygen"]).output.removesuffix("\n") for _ in range(2)]
    assert Settings.load(encryption_keys=",".join(made)).key_ring == tuple(made)
    assert made[0] != made[1]
