"""Servers of FastMCP 4 whose tools run as Celery jobs: the optional extra ``mcp-celery-backend[fastmcp]``.

```python
from fastmcp import FastMCP
from mcp_celery.fastmcp import TasksExtension  # instead of: from fastmcp_tasks import TasksExtension

mcp = FastMCP("reports")
mcp.add_extension(TasksExtension())

@mcp.tool(task=True)
async def build(year: int) -> str: ...
```

- ``extension.py``: what an author adds to a server. FastMCP calls it for each ``tools/call``, after its middleware.
- ``source.py``, ``component.py``, ``arguments.py``: the port to the server that owns the components.
- ``routing.py``: requests that FastMCP does not know, on their way to FastMCP's handlers.
- ``running.py``, ``results.py``: a tool in a job, and what becomes of what it returns or raises.
- ``private.py``: FastMCP's private names. No other module uses one.
"""

from importlib.util import find_spec

if find_spec("fastmcp") is None:
    raise ImportError(
        "mcp_celery.fastmcp needs FastMCP 4, which is not installed: pip install 'mcp-celery-backend[fastmcp]'"
    )

from mcp_celery.fastmcp.config import TaskConfig
from mcp_celery.fastmcp.extension import TasksExtension

__all__ = ["TaskConfig", "TasksExtension"]
