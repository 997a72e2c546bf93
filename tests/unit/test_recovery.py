"""How soon recovery acts, how a task fails then, and which jobs it revokes and forgets."""

import pytest

from mcp_celery.engine import ForeignWork
from mcp_celery.engine.recovery.model import Expiring, RecoveryPolicy
from mcp_celery.keys import celery_job_id

KEY = "auth:owner:task:tool:build_report"
POLICY = RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1)


def test_two_heartbeats_may_be_missed() -> None:
    assert POLICY.lease_ms == 60


def test_a_task_says_whether_it_may_have_had_effects() -> None:
    in_work, too_often = POLICY.died_in_work, POLICY.died_too_often
    assert (in_work.to, too_often.to) == ("failed", "failed")
    assert "may have had effects" in str(in_work.status_message)
    assert "too often" in str(too_often.status_message)


@pytest.mark.parametrize("leg", [1, 3])
def test_each_leg_had_a_job_and_the_last_one_may_run(leg: int) -> None:
    expiring = Expiring(KEY, 0, leg=leg)
    assert expiring.job_ids == [celery_job_id(KEY, number) for number in (3, 2, 1) if number <= leg]
    assert expiring.open_job_ids == [celery_job_id(KEY, leg)]


def test_all_parts_of_exposed_work_may_run() -> None:
    expiring = Expiring(KEY, 0, work=ForeignWork(parts=3))
    assert expiring.job_ids == expiring.open_job_ids == [celery_job_id(KEY, part) for part in (1, 2, 3)]


def test_an_expiring_task_without_known_fields_has_one_job_and_no_worker() -> None:
    expiring = Expiring(KEY, 0)
    assert (expiring.is_open, expiring.worker, expiring.job_ids) == (False, None, [celery_job_id(KEY, 1)])
