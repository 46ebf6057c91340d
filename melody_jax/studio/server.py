"""The HTTP server of the studio: the API at /api, the page at /, `/healthz` and `/metrics`, behind security.py.

app = make_app(Studio(queue=queue, decoder=decoder, votes=votes), Policy(), mount_page)
uvicorn.run(app)
"""

from collections.abc import Callable

from fastapi import FastAPI

from melody_jax import __version__
from melody_jax.studio.api_common import Studio, add_error_handlers
from melody_jax.studio.api_jobs import JobsApi
from melody_jax.studio.api_page import docs_response
from melody_jax.studio.api_system import CountRequests, SystemApi
from melody_jax.studio.api_takes import TakesApi
from melody_jax.studio.api_uploads import UploadsApi
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.page_policy import PagePolicy
from melody_jax.studio.security import Policy, Security

API = "/api"
"""Where the API is mounted: what it does not know never reaches the page."""


def make_app(
    studio: Studio, policy: Policy, add_page: Callable[[FastAPI, JobQueue], FastAPI] | None = None
) -> FastAPI:
    """The application of a studio.

    add_page: mounts the page at / (`page.mount_page`); None: the API alone.
    """
    system = SystemApi(studio)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.mount(API, make_api(studio, system))
    app.add_api_route("/healthz", system.healthz, methods=["GET"])
    app.add_api_route("/metrics", system.metrics, methods=["GET"])
    add_error_handlers(app)
    if add_page is not None:
        app = add_page(app, studio.queue)
        app.add_middleware(PagePolicy)
    app.add_middleware(Security, policy=policy)
    return app


def make_api(studio: Studio, system: SystemApi) -> FastAPI:
    """The API, with its description at openapi.json and as a page at docs."""
    api = FastAPI(
        title="melody studio",
        version=__version__,
        description="Makes music from prompts. See docs/studio.md of melody_jax.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": API}],
        root_path_in_servers=False,
    )
    for routes in (JobsApi(studio), TakesApi(studio), UploadsApi(studio), system):
        api.include_router(routes.router)
    api.add_api_route("/docs", lambda: docs_response(api), methods=["GET"], include_in_schema=False)
    add_error_handlers(api)
    api.add_middleware(CountRequests, counter=system.requests)
    return api
