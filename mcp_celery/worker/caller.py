"""The caller of a task, in the worker: who asked, with which headers. Provisional seams of the SDK:
the context variable behind ``get_access_token()``, and the form of a request's ``_meta``.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp_types import RequestParamsMeta
from starlette.datastructures import Headers

from mcp_celery.context import CallerToken, TaskContextSnapshot


class _Caller(AuthenticatedUser):
    """Falsy once the token expires, also while the job runs; ``get_access_token()`` relies on this."""

    def __init__(self, token: CallerToken) -> None:
        fields = {name: getattr(token, name) for name in AccessToken.model_fields}
        # Validated when it was made; and an error of validation would quote it.
        super().__init__(AccessToken.model_construct(**fields))
        self._token = token

    def __bool__(self) -> bool:
        return not self._token.expired


@contextmanager
def as_caller(snapshot: TaskContextSnapshot) -> Generator[None]:
    """Let ``get_access_token()`` give the task's caller, None for an anonymous one."""
    user = None if snapshot.token is None else _Caller(snapshot.token)
    reset_user = auth_context_var.set(user)
    try:
        yield
    finally:
        auth_context_var.reset(reset_user)


def headers_of(snapshot: TaskContextSnapshot) -> Headers | None:
    """The request's headers as a foreground tool finds them, whatever the case of their names."""
    return None if snapshot.headers is None else Headers(snapshot.headers)


def meta_of(snapshot: TaskContextSnapshot) -> RequestParamsMeta:
    """The request's ``_meta`` as the SDK hands it to handlers."""
    named = {
        "progress_token": snapshot.progress_token,
        "traceparent": snapshot.traceparent,
        "tracestate": snapshot.tracestate,
    }
    found = {**(snapshot.meta or {}), **{name: value for name, value in named.items() if value is not None}}
    return cast(RequestParamsMeta, found)
