"""An asyncio pool for Celery. ``pool`` puts the parts together, and ``elastic`` adds slots to it.

===============  ===================================================================================================
``current``      which job the running code belongs to, and how it waits: the functions for people who write jobs
``job``          one delivery, from its arrival to its end
``roster``       which jobs run and which wait for a slot
``greenlets``    a job on the event loop: Celery's tracer in a greenlet, the coroutine driven inside it
``threads``      a job in a thread: sync bodies
``awaited``      a coroutine on an event loop, for which a thread waits
``bodies``       what is changed on the app's tasks so that Celery's tracer awaits their bodies
``dispatcher``   brings jobs to their end: limits, interruption, and reports to Celery
``mailbox``      runs Celery's callbacks on the thread that Celery expects
``loop``         the event loop on its thread
``stalls``       says which job keeps the loop from all others
===============  ===================================================================================================

Nothing here knows MCP. Of the rest of the package only ``mcp_celery.common`` and ``mcp_celery.base_exceptions`` are
imported: the pool serves any Celery app.
"""
