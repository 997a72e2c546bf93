"""URLs of Redis Cluster, hash tags, what nodes say of slots, and what a cluster leaves to other services."""

from __future__ import annotations

from typing import Any, Final

import pytest
import redis
from redis.exceptions import ClusterDownError, MovedError

from mcp_celery import Settings
from mcp_celery.common.redis_translation import node_url, redis_py_url
from mcp_celery.common.redis_url import is_redis_url, is_same_database, parse
from mcp_celery.default_app import default_app, require_broker
from mcp_celery.errors import ConfigurationError
from mcp_celery.server.connections import backend_of
from mcp_celery.settings import STORE_RESULTS
from mcp_celery.store.cluster import SlotSearch, shards_in, slot_of
from mcp_celery.store.failures import described
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.masters import Address

URL: Final = "redis+cluster://a.example:7000,b.example"
A: Final[Address] = ("a.example", 7000)
B: Final[Address] = ("b.example", 6379)
C: Final[Address] = ("10.0.0.3", 7002)
REPLY: Final[list[list[Any]]] = [
    [0, 8191, [b"a.example", 7000, b"id-a"], [b"10.0.0.9", 7009, b"id-r", []]],
    [8192, 16383, [b"10.0.0.3", 7002, b"id-c"]],
]
LOW, HIGH = "x", "y"


def search(key: str = "") -> SlotSearch:
    return SlotSearch(parse(URL), key=key, timeout_seconds=1)


class TestUrl:
    def test_a_cluster_url_names_its_nodes_and_the_first_is_the_default(self) -> None:
        url = parse("rediss+cluster://me:s3%2Fcret@a.example:7000,[::1]:7001,b.example?ssl_ca_certs=/ca&protocol=3")
        assert url.cluster is not None
        assert url.cluster.hosts == (("a.example", 7000), ("::1", 7001), ("b.example", 6379))
        assert (url.transport, url.username, url.password, url.db) == ("tls", "me", "s3/cret", 0)
        assert "s3" not in url.place
        assert node_url(url, "::1", 7001, with_user=True).startswith("rediss://me:s3%2Fcret@[::1]:7001/0?protocol=3&")
        assert node_url(url, *B, with_user=False).startswith("rediss://b.example:6379/0?protocol=3&ssl_ca_certs=")
        assert redis_py_url(URL) == "redis://a.example:7000/0"
        assert parse("valkey+cluster://localhost/").cluster is not None

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("redis+cluster://a:7000/1", "no database but 0"),
            ("redis+cluster://a?db=2", "no database but 0"),
            ("redis+cluster://a,", "a node of the cluster is empty"),
            ("redis+cluster://", "a node of the cluster is empty"),
            ("redis+cluster://a:x,b", "port"),
            ("redis+cluster://a?sentinel_ssl=true", "needs sentinel://"),
            ("redis+cluster://a?ssl_ca_certs=/ca", "rediss"),
        ],
    )
    def test_a_cluster_url_that_cannot_be_used_is_refused(self, url: str, reason: str) -> None:
        with pytest.raises(ConfigurationError, match=reason):
            Settings.load(redis_url=url)

    def test_celery_uses_no_cluster_as_its_broker(self) -> None:
        assert not is_redis_url(URL)
        assert not is_same_database("redis://a.example:7000/0", URL)
        assert not is_same_database(URL, "redis://a.example:7000/0")
        assert is_same_database(URL, "redis+cluster://B.example")
        assert not is_same_database(URL, "redis+cluster://c.example")
        assert parse(URL).shares_server_with(parse("redis+cluster://B.example"))
        assert not parse(URL).shares_server_with(parse("redis://a.example:7000"))
        for name in ("broker_url", "result_backend"):
            with pytest.raises(ConfigurationError, match="Celery cannot use a Redis Cluster"):
                Settings.load(**{name: URL})


class TestHashTags:
    @pytest.mark.parametrize(
        ("prefix", "root"),
        [("mcp_celery", "{mcp_celery:n}"), ("{team}", "{team}:n"), ("app:{team}:x", "app:{team}:x:n")],
    )
    def test_all_keys_of_a_namespace_share_one_hash_tag(self, prefix: str, root: str) -> None:
        keys = RedisKeys(prefix, "n", is_tagged=True)
        assert keys.root == root
        names = [keys.record("s", "i"), keys.snapshot(None, "i"), keys.expiry, keys.claims("w"), keys.webhook("m")]
        assert {slot_of(name) for name in names} == {slot_of(root)}
        assert RedisKeys(prefix, "n").root == f"{prefix}:n"

    @pytest.mark.parametrize("prefix", ["a{b", "}a", "{}", "a}"])
    def test_a_prefix_with_other_braces_is_refused_where_they_matter(self, prefix: str) -> None:
        assert Settings.load(key_prefix=prefix).key_prefix == prefix
        for values in ({"redis_url": URL}, {"hash_tags": True}):
            with pytest.raises(ConfigurationError, match="MCP_CELERY_KEY_PREFIX has a brace and no hash tag"):
                Settings.load(key_prefix=prefix, **values)


class TestSearch:
    def test_the_master_of_a_slot_is_found_and_all_nodes_are_known_then(self) -> None:
        assert slot_of(LOW) != slot_of(HIGH)
        shards = shards_in(A, REPLY)
        for key in (LOW, HIGH):
            found = search(key)
            owner = next(one.master for one in shards if one.first <= slot_of(key) <= one.last)
            assert found.read(B, REPLY) == owner
            assert found.order == [B, A, C, ("10.0.0.9", 7009)]
        assert search().read(A, REPLY) == A
        assert search().read(B, REPLY) == A
        assert search(LOW).read(A, []) is None

    @pytest.mark.parametrize("host", [b"", None, b"?"])
    def test_a_node_without_an_address_has_that_of_the_node_that_was_asked(self, host: bytes | None) -> None:
        (shard,) = shards_in(A, [[0, 16383, [host, 7005, b"id"]]])
        assert shard.master == ("a.example", 7005)

    def test_a_node_that_was_named_is_asked_first(self) -> None:
        found = search(LOW)
        assert found.is_elsewhere(MovedError("3999 10.0.0.3:7002"), A)
        assert found.order == [C, A, B]
        assert found.is_elsewhere(MovedError("3999 :7003"), A)
        assert found.order[0] == ("a.example", 7003)
        assert not found.is_elsewhere(redis.ResponseError("WRONGTYPE"), A)

    def test_a_node_that_may_be_cut_off_is_asked_last(self) -> None:
        found = search(LOW)
        found.believe(A, C)
        assert found.is_elsewhere(ClusterDownError("The cluster is down"), C)
        assert found.order == [B, A]

    def test_the_error_says_why_no_node_names_the_master(self) -> None:
        refused = redis.AuthenticationError("invalid username-password pair or user is disabled.")
        assert isinstance(search().failed([(A, refused), (B, redis.ConnectionError("x"))]), redis.AuthenticationError)
        error = search(LOW).failed([(A, None), (B, redis.ResponseError("This instance has cluster support disabled"))])
        assert "a.example:7000 knows none; b.example:6379 (ResponseError: This instance" in str(error)
        assert described(error).endswith("is no node of a cluster: use redis:// for it")
        assert described(MovedError("1 a:1")).endswith("use redis+cluster://")


class TestServices:
    @pytest.fixture(autouse=True)
    def _unconfigured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("broker_url", "broker_write_url", "result_backend"):
            monkeypatch.setitem(default_app.conf, name, None)

    def test_a_cluster_keeps_results_and_is_no_broker(self) -> None:
        settings = Settings.load(redis_url=URL)
        assert (settings.celery_broker, settings.celery_results) == ({}, {"result_backend": STORE_RESULTS})
        with pytest.raises(ConfigurationError, match=r"as its broker: set MCP_CELERY_BROKER_URL$"):
            require_broker(settings)

    def test_the_broker_may_be_configured_anywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(default_app.conf, "broker_url", "amqp://")
        require_broker(Settings.load(redis_url=URL))

    def test_a_result_backend_that_is_named_is_used(self) -> None:
        settings = Settings.load(redis_url=URL, result_backend="redis://x.example")
        assert settings.celery_result_backend == "redis://x.example:6379/0"

    @pytest.mark.parametrize(("prefix", "shared"), [("app", "{app}:"), ("{reports}", "{reports}:")])
    def test_one_shard_has_a_tag_for_everything_of_the_broker(self, prefix: str, shared: str) -> None:
        for values in ({"redis_url": "redis://one.example"}, {"redis_url": URL, "broker_url": "redis://one.example"}):
            tagged = Settings.load(key_prefix=prefix, hash_tags=True, **values)
            assert tagged.celery_broker["broker_transport_options"] == {"global_keyprefix": shared}
            assert tagged.celery_result_backend == STORE_RESULTS
        beside = Settings.load(redis_url=URL, broker_url="redis://one.example")
        assert "broker_transport_options" not in beside.celery_broker
        assert "broker_transport_options" not in Settings.load(broker_url="amqp://", hash_tags=True).celery_broker

    @pytest.mark.parametrize(
        ("key", "prefix", "together"),
        [
            ("{app:n}:celery-task-meta-x", "app", True),
            ("{app}:celery-task-meta-x", "app", False),
            ("celery-task-meta-x", "app", False),
            ("{reports}:celery-task-meta-x", "{reports}", True),
        ],
    )
    def test_one_script_may_have_only_what_shares_the_tag(self, key: str, prefix: str, together: bool) -> None:
        tagged = backend_of(Settings.load(redis_url="redis://one.example", key_prefix=prefix, hash_tags=True))
        assert tagged.holds_results_at("redis://one.example", key, "n") == together
        assert tagged.holds_queues_at("redis://one.example", key, "n") == together
        assert not tagged.holds_results_at("redis://other.example", key, "n")
        plain = backend_of(Settings.load(redis_url="redis://one.example", key_prefix=prefix))
        assert plain.holds_results_at("redis://one.example", key, "n")
