"""What the users of this server share by design, beside the kernel's own list; and what each of them has open.

Everything here keeps its users apart by their ids, or knows of none of them.
"""

from __future__ import annotations

from json import JSONDecoder
from typing import TYPE_CHECKING, Final

from quart import Quart
from quart import ctx as quart_contexts
from werkzeug.local import LocalProxy

from app.accounts.service import AccountService
from app.audit.trail import Trail
from app.chat.apart import ApartWriter
from app.chat.dispatch import Dispatch
from app.chat.execution import Executor
from app.chat.journal import Batch, Journal
from app.chat.place import RunPlaces
from app.chat.runs import Runs
from app.chat.threads import Threads
from app.engine.engine import Catalog
from app.engine.registry import AgentRegistry
from app.tools.analysis.workbench import Workbench
from app.tools.mcp.link import Places
from app.tools.mcp.toolbox import Toolbox
from app.tools.registry import ToolRegistry
from app.tools.threads import ToolThreads
from app.web.feeds import Feeds
from app.web.health import Vitals
from app.web.socket import SocketEndpoint
from nurseries.inspect import KERNEL, Infrastructure, open_now
from nurseries.serving import Listener

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio

    from nurseries.events import Streams
    from nurseries.request import Kernel
    from nurseries.session import Session

SHARED: Final = (
    AccountService,  # accounts and sessions, by id
    Trail,  # what happened, in entries that nobody but an administrator reads
    Journal,  # events, by thread
    ApartWriter,  # the same, by thread
    Batch,  # events of all threads that are committed together, and the news that they are
    Runs,  # by id, each with its user
    Threads,  # by user and thread
    Executor,  # keeps nothing of a run
    RunPlaces,  # counts
    Catalog,  # classes of agents and tools; nothing of any user
    AgentRegistry,
    ToolRegistry,
    ToolThreads,  # by user
    Toolbox,  # what servers offer to everybody, and links by the socket that owns them
    Workbench,  # places for queries, by user
    Places,  # how many connections there may be
    Dispatch,  # handles frames of any session, and keeps none
    Feeds,
    SocketEndpoint,
    Listener,  # connections
    Quart,  # routes
    # The call that a handler answers; no run ever sees one. How many classes make it up differs between versions.
    *(
        cls
        for name, cls in vars(quart_contexts).items()
        if name.endswith("Context") and isinstance(cls, type)
    ),
    LocalProxy,  # leads each task to its own call
    JSONDecoder,  # keeps nothing between two texts
    Vitals,  # counts
)


def shared_by_design(requests: trio.Nursery, catalog: Catalog) -> Infrastructure:
    """Return all that users may share, and which installed code is looked into as ours.

    Args:
        requests: the nursery of the runs that outlive who asked for them.
        catalog: the agents and what they use.
    """
    ours = {"app", *(agent.__module__.partition(".")[0] for agent in catalog.agents)}
    types = (*SHARED, *catalog.cascade.shared(), *catalog.toolbox.shared())
    return KERNEL.and_also(types=types, objects=(requests,), code=ours)


def open_scopes(
    kernel: Kernel, sessions: Iterable[Session], streams: Streams, runs: Runs
) -> dict[str, list[object]]:
    """Return what each user has open: requests, sockets, what waits for them, and runs, the queued ones included."""
    scopes = open_now(kernel.live.requests.values(), sessions, streams.outboxes())
    for run in runs:
        scopes.setdefault(run.context.user_id, []).append(run)
    return scopes
