"""What operators ask: which tasks there are, what each waits for, which workers there are, and what is set up wrong.

The commands (``cli/operate``) print what is read here. It reads the store and asks Celery's workers, and takes no part
in recovery: nothing here publishes a job.
"""
