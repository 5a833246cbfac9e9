"""The Quart application: blueprints, one error table, and nothing of its own."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from quart import Blueprint, Response, request

from app.web.accounts import accounts_blueprint
from app.web.admin import admin_blueprint
from app.web.approvals import approvals_blueprint
from app.web.authentication import refuse_query_tokens, require_identity
from app.web.bodies import json_response
from app.web.exchange import Application
from app.web.feeds import Feeds
from app.web.files import files_blueprint
from app.web.health import health_blueprint
from app.web.mcp import mcp_blueprint
from app.web.parameters import refuse_unknown_parameters
from app.web.problems import install_problems
from app.web.refusals import teller
from app.web.runs import runs_blueprint
from app.web.threads import threads_blueprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.accounts.service import AccountService
    from app.audit.refusals import Refusals
    from app.chat.runs import Runs
    from app.engine.engine import Catalog
    from app.engine.registry import AgentRegistry
    from app.web.health import Vitals
    from nurseries.events import Streams
    from nurseries.request import Kernel
    from nurseries.server import Server

PARAMETERS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "threads.page": frozenset({"limit", "before"}),
        "threads.messages": frozenset({"limit", "before"}),
        "runs.create": frozenset({"wait"}),
        "runs.events": frozenset({"after"}),
        "admin.audit": frozenset({"after", "limit", "kind", "user_id"}),
    }
)
"""The query parameters of each route that takes any."""


def make_application(  # noqa: PLR0913  # the wiring of all routes
    service: AccountService,
    kernel: Kernel,
    runs: Runs,
    server: Server,
    streams: Streams,
    catalog: Catalog,
    vitals: Vitals,
    refusals: Refusals,
) -> Application:
    """Return the application with all its routes."""
    # No static folder: a route for files that are not there would only answer for them.
    app = Application("app", static_folder=None)
    # Streams last; what a peer may take is bounded by the serving layer.
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = None
    install_problems(app, teller(refusals))
    refuse_query_tokens(app)
    refuse_unknown_parameters(app, PARAMETERS)
    app.after_request(_keep_out_of_caches)
    app.register_blueprint(accounts_blueprint(service))
    app.register_blueprint(threads_blueprint(service, kernel, runs))
    feeds = Feeds(service, kernel, server, streams, runs)
    app.register_blueprint(runs_blueprint(service, kernel, runs, server, feeds))
    app.register_blueprint(approvals_blueprint(service, kernel, runs, vitals.trail.record))
    app.register_blueprint(_agents_blueprint(service, catalog.agents))
    app.register_blueprint(files_blueprint(service, kernel, catalog.workbench))
    app.register_blueprint(mcp_blueprint(service, kernel, catalog.toolbox))
    app.register_blueprint(_index_blueprint())
    app.register_blueprint(health_blueprint(vitals))
    app.register_blueprint(admin_blueprint(vitals))
    return app


async def _keep_out_of_caches(response: Response) -> Response:
    """Let no proxy or browser keep what was answered to one user."""
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _agents_blueprint(service: AccountService, agents: AgentRegistry) -> Blueprint:
    blueprint = Blueprint("agents", __name__)

    @blueprint.get("/v1/agents")
    async def describe() -> Response:
        await require_identity(service)
        return json_response({"agents": agents.describe()})

    return blueprint


INDEX = """\
This is a nurseries server. Chat with it from a terminal:

    nurseries chat --url {url} --register --email you@example.org

A sign-in link signs its user in there, too:

    nurseries chat --url {url} --signin LINK
"""


def _index_blueprint() -> Blueprint:
    blueprint = Blueprint("index", __name__)

    @blueprint.get("/")
    async def index() -> Response:
        """Say what this is to whoever opens it in a browser, by a sign-in link for example."""
        return Response(
            INDEX.format(url=request.host_url.rstrip("/")), content_type="text/plain; charset=utf-8"
        )

    return blueprint
