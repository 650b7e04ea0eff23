"""The addresses of the board, and who may ask for them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from orchestrator.base.errors import UserError
from orchestrator.board.guard import Guard
from orchestrator.board.pages import Pages
from orchestrator.board.run_cache import Hub


def make_app(hub: Hub, token: str, hosts: tuple[str, ...] = ()) -> Starlette:
    """Return the board as an application.

    Args:
        hub: the store.
        token: who knows it may use the board.
        hosts: names under which the board may be asked; all where there is none.
    """
    pages = Pages(hub)
    routes = [
        Route("/", pages.runs),
        Route("/events", pages.list_events),
        Route("/submit", pages.submit),
        Route("/submit", pages.check, methods=["POST"]),
        Route("/submit/start", pages.start, methods=["POST"]),
        Route("/board.css", pages.style),
        Route("/board.js", pages.script),
        Route("/runs/{run_id}", pages.overview),
        Route("/runs/{run_id}/events", pages.run_events),
        Route("/runs/{run_id}/trials", pages.trials),
        Route("/runs/{run_id}/trials.csv", pages.trials_csv),
        Route("/runs/{run_id}/trials/{trial_id:path}", pages.trial),
        Route("/runs/{run_id}/curves", pages.curves),
        Route("/runs/{run_id}/results", pages.results),
        Route("/runs/{run_id}/data", pages.data),
        Route("/runs/{run_id}/logs", pages.logs),
        Route("/runs/{run_id}/files/{name}", pages.file),
        Route("/runs/{run_id}/trials/{trial_id:path}/stop", pages.stop, methods=["POST"]),
        Route("/runs/{run_id}/cancel", pages.cancel, methods=["POST"]),
        Route("/runs/{run_id}/resume", pages.resume, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token, hosts=hosts)],
        exception_handlers={HTTPException: pages.problem, UserError: pages.refusal},
    )
