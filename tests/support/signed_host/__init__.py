"""Somebody's project whose Celery messages are signed with certificates: Celery's ``auth`` serializer."""
