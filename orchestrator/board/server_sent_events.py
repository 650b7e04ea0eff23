"""Server-sent events: a page that is open learns that what it shows has changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from orchestrator.board.run_cache import Hub, OpenedRun

_EVENT_EVERY_S = 0.5
_LIST_EVERY_S = 2.0
_HEARTBEAT_S = 15.0


def stream(versions: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Return server-sent events: one for every version that differs from the last one."""

    async def lines() -> AsyncIterator[str]:
        last: dict[str, Any] | None = None
        silent_s = 0.0
        clock = asyncio.get_running_loop().time
        sent = clock()
        async for version in versions:
            silent_s = clock() - sent
            if version != last:
                last = version
                sent = clock()
                yield f"event: change\ndata: {json.dumps(version)}\n\n"
            elif silent_s > _HEARTBEAT_S:
                sent = clock()
                yield ": still here\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def list_versions(hub: Hub, request: Request) -> AsyncIterator[dict[str, Any]]:
    """Give the version of the list of runs again and again, while a page waits for it."""
    clock = asyncio.get_running_loop().time
    due = clock()
    version = ""
    while await _is_followed(hub, request):
        if clock() >= due:
            version = await run_in_threadpool(hub.runs.version)
            due = clock() + _LIST_EVERY_S
        yield {"version": version, "files": version}
        await asyncio.sleep(_EVENT_EVERY_S)


async def run_versions(
    hub: Hub, request: Request, opened: OpenedRun
) -> AsyncIterator[dict[str, Any]]:
    """Give the versions of a run and of its files again and again, while a page waits for them."""
    live = opened.live
    while await _is_followed(hub, request):
        if live.is_due:
            await run_in_threadpool(live.refresh)
        files_mark = hash((live.is_live, live.file_times()))
        yield {"version": live.version, "files": files_mark}
        await asyncio.sleep(0.0 if live.n_unread_bytes else _EVENT_EVERY_S)


async def _is_followed(hub: Hub, request: Request) -> bool:
    """Return True while a page waits for events and the server is not ending."""
    return not (hub.is_closing() or await request.is_disconnected())
