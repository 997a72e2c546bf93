"""Celery's settings of an operator who lets RabbitMQ sort jobs by priority (``CELERY_CONFIG_MODULE``)."""

task_queue_max_priority = 9
