"""The components of a server: the port to the server that owns them, and what is declared of them.

Everything that tasks need of a server goes through the Protocol ``ComponentSource``: its name, its low-level server,
its components with their configuration, the check of arguments, running a component in a job, its ASGI app and its
lifespan. ``CeleryTasks.install`` takes an ``MCPServer``, or an implementation of the Protocol for another kind of
server.

- Lookups are coroutines, since a registry may have to wait. ``CeleryTasks.components()``, ``config()`` and
  ``queue_names`` serve code that cannot await, such as the start of a worker; they run the lookup in a thread with its
  own event loop.
- A lookup has the request's ``_meta``, by which a client may choose a component's version. All versions share one
  Celery job, whose options are those of the first version that may run as a task.
- A declaration given to ``CeleryTasks`` by name overrides the component's own, and that overrides the default.
- The worker builds the request context and maps errors and results, the same for every kind of server. The source calls
  the component and turns its exceptions into results, except those that Celery decides on.

``tests/support/tiny_server.py`` is a second implementation, on which the acceptance tests run.
"""
