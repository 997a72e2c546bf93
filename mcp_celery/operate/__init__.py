"""Answers for operators: the tasks, what each waits for, the workers, and errors of the deployment.

The commands (``cli/operate``) print what is read here. It reads the store and asks Celery's workers, and takes no part
in recovery: nothing here publishes a job.
"""
