"""Everything that talks to Celery as a producer: the queue of a server, what its jobs are called, their results."""
