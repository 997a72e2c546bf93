"""``CeleryTasks``: the tasks of one MCP server, with protocol, connections and worker put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
import kombu
from celery import Celery, signals
from kombu.exceptions import KombuError
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import ToolAnnotations

from mcp_celery.broker.naming import default_queue_name, job_name, slug
from mcp_celery.broker.own_jobs import OwnJobs
from mcp_celery.broker.publisher import bounded
from mcp_celery.broker.queues import QueueUse, queue_of, require_priorities
from mcp_celery.components.declarations import ComponentKey, DeclaredComponents
from mcp_celery.components.source import ComponentSource
from mcp_celery.config import TaskConfig, TaskMeta, as_config
from mcp_celery.context import register_task_server
from mcp_celery.default_app import configured_queue, default_app
from mcp_celery.engine import Backend, JSONObject, TaskEngine, Unusable
from mcp_celery.errors import ConfigurationError
from mcp_celery.exposed import ExposedCatalog, ExposedTool, Exposing
from mcp_celery.keys import TaskType
from mcp_celery.logs import get_logger
from mcp_celery.protocol import (
    REQUESTING_REVISION,
    RESULT_VERSION,
    SubmittedTask,
    TaskHost,
    TasksExtension,
    add_polling_tools,
    middleware_of,
    revision_named,
    submit,
)
from mcp_celery.protocol.shared_wire import OWN_EXTENSION, OWN_SETTINGS
from mcp_celery.server.connections import Connections, backend_of
from mcp_celery.server.eager_queue import NOTICE_OF_EAGER, NOTICE_OF_MEMORY, EagerJobs, EagerQueue
from mcp_celery.server.mcp_server_source import MCPServerSource
from mcp_celery.server.schedules import Schedules, Scheduling
from mcp_celery.settings import Settings
from mcp_celery.telemetry.setup import flush, require_installed, set_up
from mcp_celery.worker import (
    HeldVersion,
    InputLifetimes,
    JobLoop,
    JobRevisions,
    JobRunner,
    ProbeOptions,
    ServerLoop,
    VersionCheck,
    VersionPolicy,
    WorkerRuntime,
    register,
)

logger = get_logger(__name__)

Declarations = Mapping[str, bool | TaskConfig]
Found = TypeVar("Found")
_tasks: WeakKeyDictionary[Any, CeleryTasks] = WeakKeyDictionary()


class CeleryTasks(Exposing, Scheduling):
    """Runs components of an MCP server as Celery jobs.

    For a server that exists already:

    ```python
    CeleryTasks(celery=app, tools={"build_report": True}).install(server)
    ```

    Args:
        celery: The Celery app whose broker, result backend and routes are used; its settings are never changed. None:
            an app made from ``MCP_CELERY_*``, the one that ``celery -A mcp_celery worker`` runs.
        settings: None: read from ``MCP_CELERY_*``.
        backend: Where the tasks are kept. None: where ``MCP_CELERY_REDIS_URL`` says.
        task: What tools declare that are not named in ``tools``; False: they never run as tasks.
        tools: What tools declare, by name.
        prompts: What prompts declare, by name.
        resources: What resources declare, by URI or URI template.

    Raises:
        ConfigurationError: A setting is refused; the message names it.
    """

    def __init__(
        self,
        *,
        celery: Celery | None = None,
        settings: Settings | None = None,
        backend: Backend | None = None,
        task: bool | TaskConfig = False,
        tools: Declarations | None = None,
        prompts: Declarations | None = None,
        resources: Declarations | None = None,
    ) -> None:
        self.settings = settings or Settings.load()
        self.backend = backend or backend_of(self.settings)
        self.celery = celery or default_app
        self.default = as_config(task)
        self._exposed = ExposedCatalog(
            timeout_seconds=self.settings.publish_timeout_ms / 1000, result_version=RESULT_VERSION
        )
        self._declarations: dict[ComponentKey, TaskConfig] = {}
        self._listed: dict[ComponentKey, TaskConfig] = {}
        named: dict[TaskType, Declarations | None] = {"tool": tools, "prompt": prompts, "resource": resources}
        for task_type, declarations in named.items():
            for component, declared in (declarations or {}).items():
                self.declare(task_type, component, as_config(declared))
        self.spec: str | None = None
        """How a command has named the server, None where none has imported it."""
        self._host: TaskHost | None = None
        self._connections: Connections | None = None
        self._eager_jobs: EagerJobs | None = None
        self.schedules = Schedules(self.celery, lambda: self.host, lambda: self.connections)
        """What Celery beat has run."""

    def install(self, server: MCPServer[Any] | ComponentSource) -> None:
        """Fit a server that exists already, before it serves.

        Args:
            server: The server, or the port to one of another kind.

        Raises:
            ConfigurationError: The server runs tasks already, or its name gives no namespace.
        """
        source = _as_source(server)
        if _find(source.server) is not None:
            raise ConfigurationError(f"the MCP server {source.name!r} runs tasks already")
        self.attach(source)
        source.fit(
            TasksExtension(self.host),
            middleware_of(self.host),
            self.running,
            max_streams=self.settings.max_streams,
        )
        source.lowlevel.extensions[OWN_EXTENSION] = dict(OWN_SETTINGS)

    def attach(self, server: MCPServer[Any] | ComponentSource) -> None:
        """Say whose tasks these are.

        Raises:
            ConfigurationError: The server's name gives no namespace.
        """
        source = _as_source(server)
        try:
            self.namespace = self.settings.namespace or slug(source.name)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        components = DeclaredComponents(source, self._declarations, self.default)
        self._connections = Connections(
            self.settings,
            self.backend,
            self.celery,
            namespace=self.namespace,
            queue_name=lambda: self.queue_name,
            declared=components.config,
            exposed=self._exposed,
            eager=self._eager_queue,
            worker_command=self.worker_command,
        )
        self._host = TaskHost(
            engine=self.engine,
            components=components,
            foreground=self.settings.foreground,
            header_names=self.settings.header_names,
            max_listen_tasks=self.settings.max_listen_tasks,
            max_push_bytes=self.settings.max_push_bytes,
        )
        _tasks[source.server] = self
        register_task_server(self.namespace, source.server)

    @property
    def host(self) -> TaskHost:
        """The protocol's view of the server whose tasks these are.

        Raises:
            ConfigurationError: These tasks belong to no server yet.
        """
        if self._host is None:
            raise ConfigurationError("these tasks belong to no server yet: call CeleryTasks.install(server)")
        return self._host

    @property
    def source(self) -> ComponentSource:
        """The server whose tasks these are.

        Raises:
            ConfigurationError: These tasks belong to no server yet.
        """
        return self.host.components.source

    @property
    def connections(self) -> Connections:
        """The server's connections.

        Raises:
            ConfigurationError: These tasks belong to no server yet.
        """
        if self._connections is None:
            raise ConfigurationError("these tasks belong to no server yet: call CeleryTasks.install(server)")
        return self._connections

    def engine(self) -> TaskEngine:
        """The engine of the running event loop.

        Raises:
            ConfigurationError: The server's lifespan has not been entered on this loop.
        """
        return self.connections.engine()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Hold the connections of the running event loop; the last to leave closes them.

        Raises:
            ConfigurationError: On entry: the result backend cannot hold tasks, a declared component does not exist, or
                the broker has no priorities on a quorum queue of components that want one.
        """
        self._listed = await self.host.components.that_run()
        await asyncio.to_thread(self.connections.webhooks.check, self._listed)
        await asyncio.to_thread(self._require_priorities)
        await asyncio.to_thread(set_up, self.settings.exporters, f"{self.namespace}-server")
        try:
            async with self.connections.running():
                yield
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.to_thread(flush)

    def _require_priorities(self) -> None:
        """Ask RabbitMQ for its version where a component wants priorities of a quorum queue. Blocks.

        A server also starts while its broker does not answer; the workers ask as well.

        Raises:
            ConfigurationError: It has no priorities there.
        """
        if not self.connections.publishes:
            return
        if not (uses := [use for use in self._queue_uses() if use.wants_priorities]):
            return
        with bounded(self.celery.connection_for_write(), self.settings.publish_timeout_ms / 1000) as connection:
            try:
                connection.ensure_connection(max_retries=1)
            except (KombuError, OSError) as error:
                logger.warning("could not ask the broker whether its quorum queues have priorities: %s", error)
                return
            require_priorities(uses, connection)

    def _queue_uses(self) -> list[QueueUse]:
        """The requirements of the components for their queues."""
        jobs, found = self._own_jobs(), list[QueueUse]()
        for (task_type, component), config in self._own(self._listed).items():
            name = job_name(self.namespace, task_type, component)
            if (use := jobs.use(name, config, f"{task_type}:{component}")) is not None:
                found.append(use)
        return found

    def _own_jobs(self) -> OwnJobs:
        """The components' jobs, to look at their queues."""
        return OwnJobs(
            self.celery,
            namespace=self.namespace,
            default_queue=self.queue_name,
            timeout_seconds=self.settings.publish_timeout_ms / 1000,
            is_app_default=self.celery is default_app,
        )

    def declared_queue(self) -> kombu.Queue:
        """The queue of `queue_name`, as servers and workers declare it."""
        return queue_of(self.celery, self.queue_name, is_default=self.celery is default_app)

    def check(self) -> None:
        """See that tasks can be served, before anything is started.

        Raises:
            ConfigurationError: The result backend cannot hold tasks, a declared component does not exist, the broker
                has no priorities on a quorum queue of components that want one, or a package is missing.
        """
        require_installed(self.settings.exporters)
        self.connections.webhooks.check(self.components())
        self.connections.check()
        self._require_priorities()

    def unusable(self) -> Unusable | None:
        """As `Connections.unusable`."""
        return self.connections.unusable()

    async def submit(
        self, task_type: TaskType, params: JSONObject, context: Context[Any] | None, meta: TaskMeta
    ) -> SubmittedTask:
        """Submit a task in this process, as the current caller.

        Args:
            task_type: Kind of the component.
            params: Parameters of the MCP request, for example ``{"name": "train", "arguments": {}}``.
            context: The context of the request that is being served, None outside one.
            meta: What is asked about the task.

        Raises:
            InvalidRequestError: There is no such component, or it refuses the arguments.
            TaskModeError: It does not run as a task.
            LimitExceededError: Nothing was created: the caller has too many open tasks, or too many jobs wait.
            StoreUnavailableError: Nothing was created.
            QueueUnavailableError: Nothing was created.
        """
        ctx = None if context is None else context.request_context
        return await submit(self.host, task_type, params, ctx, meta, REQUESTING_REVISION)

    def add_polling_tools(self, *, after: float = 5.0, prefix: str = "") -> None:
        """Give clients that know no tasks tools to follow one, as ``TaskServer.add_polling_tools``."""
        polling = add_polling_tools(self.host, after=after, prefix=prefix)
        for name in polling.names:
            self.declare("tool", name, TaskConfig.from_bool(False))

    def declare(self, task_type: TaskType, component: str, config: TaskConfig) -> None:
        """Note what a component declares."""
        self._declarations[task_type, component] = config

    def withdraw(self, task_type: TaskType, component: str) -> None:
        """Forget a component."""
        self._declarations.pop((task_type, component), None)
        if task_type == "tool":
            self._exposed.remove(component)

    def _exposing_app(self) -> Celery:
        return self.celery

    def _schedules(self) -> Schedules:
        return self.schedules

    def beat_entries(self) -> dict[str, Any]:
        """The entries of Celery's ``beat_schedule`` for the schedules of this server."""
        return self.schedules.beat_entries(self.namespace, self.queue_name)

    @property
    def exposes_jobs(self) -> bool:
        """Whether any tool is an existing Celery job, which runs in workers of its own."""
        return bool(self._exposed)

    def add_exposed(self, exposed: ExposedTool, annotations: ToolAnnotations | None) -> None:
        self._exposed.add(self.source, exposed, annotations)
        self.declare("tool", exposed.offer.tool_name, exposed.offer.config)

    def config(self, task_type: TaskType, identifier: str) -> tuple[str, TaskConfig]:
        """As `DeclaredComponents.config`, for code that cannot await: it waits in the calling thread."""
        return _wait_for(lambda: self.host.components.config(task_type, identifier))

    def components(self) -> dict[ComponentKey, TaskConfig]:
        """As `DeclaredComponents.that_run`, for code that cannot await: it waits in the calling thread."""
        self._listed = _wait_for(self.host.components.that_run)
        return self._listed

    @property
    def queue_name(self) -> str:
        """Queue of the jobs that neither a component nor a route sends elsewhere. On the app of people who bring none,
        Celery's own configuration may name it, as it may set everything else there.
        """
        configured = configured_queue() if self.celery is default_app else None
        return configured or self.settings.queue or default_queue_name(self.namespace)

    def worker_command(self, queue: str) -> str:
        """The command that starts a worker that consumes a queue."""
        return worker_command(
            self.celery, queue, default_queue=self.queue_name, server=self.spec or self.settings.server
        )

    @property
    def queue_names(self) -> tuple[str, ...]:
        """Every queue that the components use, the server's own first."""
        named = {config.queue for config in self._own(self.components()).values() if config.queue}
        if self.webhook_queue is not None:
            named.add(self.webhook_queue)
        return (self.queue_name, *sorted(named - {self.queue_name}))

    @property
    def webhook_queue(self) -> str | None:
        """The queue of the jobs that deliver webhooks, where it is another one than that of the server."""
        return self.settings.webhook_queue if self.settings.has_webhooks else None

    def register_jobs(self, app: Celery) -> list[str]:
        """Register one job for each component with a worker's app.

        Returns:
            The names of the jobs.

        Raises:
            ConfigurationError: A declared component does not exist, no worker reaches the server's tasks, an extra is
                not installed that a setting needs, or a schedule's tool does not run as a task.
        """
        self.connections.require_workers()
        set_up(self.settings.exporters, f"{self.namespace}-worker")
        register_task_server(self.namespace, self.source.server)
        # Not before: Celery sets up logging only after its modules are imported.
        uid = f"mcp_celery.say_what_is_kept.{self.namespace}"
        signals.celeryd_after_setup.connect(self.connections.say_what_is_kept, weak=False, dispatch_uid=uid)
        components = self.components()
        self.schedules.register(app, self.namespace, components)
        self.connections.webhooks.check(components)
        self.connections.webhooks.register(app)
        return register(app, self._make_runtime(), self._own(components))

    def _eager_queue(self) -> EagerQueue:
        if self.source.has_one_lifespan:
            return self._make_eager_jobs(ServerLoop(asyncio.get_running_loop())).queue(nested=False)
        if self._eager_jobs is None:
            self._eager_jobs = self._make_eager_jobs()
        return self._eager_jobs.queue(nested=self._eager_jobs.are_here())

    def _make_eager_jobs(self, loop: JobLoop | None = None) -> EagerJobs:
        notice = NOTICE_OF_MEMORY if self.backend.in_process else NOTICE_OF_EAGER
        return EagerJobs(self.celery, self._make_runtime(loop), lambda: self._own(self._listed), notice)

    def _make_runtime(self, loop: JobLoop | None = None) -> WorkerRuntime:
        return WorkerRuntime(
            namespace=self.namespace,
            ledger=self.connections.ledger,
            living=self.connections.living,
            make_runner=self._make_runner,
            results=self.connections.result_place(),
            signer=self.connections.signer,
            held=self.held_versions,
            max_handbacks=self.settings.max_handbacks,
            seals=self.connections.result_seals,
            store_name=self.backend.name,
            other_store=self.settings.other_store,
            loop=loop,
            probes=ProbeOptions.of(self.settings),
        )

    def held_versions(self) -> list[HeldVersion]:
        """The versions of the components whose jobs are ours, as they are here, with their queues. It waits in the
        calling thread.
        """
        jobs, found = self._own_jobs(), list[HeldVersion]()
        for one in _wait_for(self.host.components.versions_that_run):
            if one.key not in self._exposed:
                lane = jobs.lane(job_name(self.namespace, *one.key), one.config)
                found.append(HeldVersion(one.fingerprint, ":".join(one.key), lane.queue, lane.priority))
        return found

    def _own(self, components: Mapping[ComponentKey, TaskConfig]) -> dict[ComponentKey, TaskConfig]:
        """The components whose jobs run in this package's workers: all but the exposed ones."""
        return {one: config for one, config in components.items() if one not in self._exposed}

    def _make_runner(self) -> JobRunner:
        return JobRunner(
            self.source,
            namespace=self.namespace,
            open_store=self.connections.open_store,
            open_bus=self.connections.open_bus,
            lifetimes=InputLifetimes(self.settings.default_ttl_ms, self.connections.max_ttl_ms()),
            progress_interval_seconds=self.settings.progress_interval_ms / 1000,
            max_result_bytes=self.settings.max_result_bytes,
            revisions=JobRevisions(revision_named, REQUESTING_REVISION.version),
            versions=VersionCheck(
                self.host.components, VersionPolicy(self.settings.component_match, self.settings.max_handbacks)
            ),
        )


def check(server: object) -> None:
    """See that a server's tasks can be served, where it runs any.

    Raises:
        ConfigurationError: The result backend cannot hold tasks, or a declared component does not exist.
    """
    if (tasks := _find(server)) is not None:
        tasks.check()


def is_in_memory(server: object) -> bool:
    """Whether a server keeps its tasks in the memory of its process."""
    return (tasks := _find(server)) is not None and tasks.backend.in_process


def unusable(server: object) -> Unusable | None:
    """Ask a server's store and broker whether they can be used, and wait for their answers. An outage is logged.

    Returns:
        Why one of them cannot be used; None where both can, or the server runs no tasks.
    """
    return None if (tasks := _find(server)) is None else tasks.unusable()


def settings_of(server: object) -> Settings:
    """Return the settings that a server was made with; for one that runs no tasks, those of the environment.

    Raises:
        ConfigurationError: A setting is refused; the message names it.
    """
    tasks = _find(server)
    return Settings.load() if tasks is None else tasks.settings


def source_of(server: object) -> ComponentSource:
    """The port to a server: an ``MCPServer``, or a server of another kind that runs tasks.

    Raises:
        ConfigurationError: It is neither.
    """
    if (tasks := _find(server)) is not None:
        return tasks.source
    if isinstance(server, MCPServer):
        return _as_source(cast("MCPServer[Any]", server))
    raise ConfigurationError(f"a {type(server).__name__} is not an MCP server")


def tasks_of(server: object) -> CeleryTasks:
    """The task side of a server.

    Raises:
        ConfigurationError: The server has none.
    """
    found = _find(server)
    if found is None:
        raise ConfigurationError(
            f"the MCP server {source_of(server).name!r} runs no tasks: make it a mcp_celery.TaskServer, "
            "or call mcp_celery.CeleryTasks(…).install(server)"
        )
    return found


def _find(server: object) -> CeleryTasks | None:
    try:
        return _tasks.get(server)
    except TypeError:  # an object that cannot be a key, and so no server
        return None


def _as_source(server: MCPServer[Any] | ComponentSource) -> ComponentSource:
    return MCPServerSource(server) if isinstance(server, MCPServer) else server


def _wait_for(ask: Callable[[], Coroutine[Any, Any, Found]]) -> Found:
    """Run a coroutine in a thread with an event loop of its own, since the caller's thread may run one already."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(ask())).result()


def worker_command(app: Celery, queue: str, *, default_queue: str, server: str | None) -> str:
    """The command that starts a worker that consumes a queue.

    Args:
        app: The Celery app whose workers run the jobs.
        queue: The queue.
        default_queue: The queue that a worker of the app of people who bring none consumes by itself.
        server: The server as ``module:attribute``; None: it is not known.
    """
    queues = "" if queue == default_queue else f" -Q {queue}"
    if app is default_app:
        return f"MCP_CELERY_SERVER={server or 'module:attribute'} celery -A mcp_celery worker{queues}"
    return f"celery -A {app.main or '<your app>'} worker{queues or f' -Q {queue}'}"
