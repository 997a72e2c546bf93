"""Foreign jobs: existing Celery jobs that are exposed as tools, and whose states are read from outside.

A component's own job runs in a worker of this package; a foreign job runs in a worker that knows nothing of tasks.
``engine/work.py`` and ``engine/submission.py`` have a type for each. What differs (the Celery ids of a task, whether a
cancel may terminate a job, how jobs are published) is asked of these types; ``engine/reconcile.py`` reads the results.

A record of foreign jobs holds their number, and their Celery ids follow from the task's key: ``{id}``, ``{id}!2``, …
The first ones give the task's result. No worker claims or starts such a job in our store. Instead, an index
(``{prefix}:{ns}:exposed``) holds the open tasks by the time of their next look. ``watch.lua`` gives the caller the
tasks that are due and sets their next look, so replicas share the work without an election. Results are read with
``mget`` of Redis or memcached, else one by one, and each state that the record does not have yet becomes a transition.
An event of Celery makes its task due at once. An event that says that a job started is stored in the record
(``started.py``), because without ``task_track_started`` the result backend does not know it.
"""
