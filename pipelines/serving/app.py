"""HTTP over a service: one route that predicts, what the model is, health, and a page."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from pipelines.serving.forms import file_in, is_form
from pipelines.serving.service import Service, TooLargeError
from segcore.errors import DataError, SegcoreError, ShapeError, unknown_name

PAGE = Path(__file__).parent / "templates" / "page.html"
RETRY_S = 1
FORMATS = ("png", "json", "view")
# The page is one file that loads nothing from elsewhere, and a browser holds it to that.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Args:
        max_mb: of a body, in 10^6 bytes.
        max_requests: pictures at a time, those that wait for the model among them; more are
            refused, so that what they hold in memory is bounded.
        body_s: in which a body has to arrive.
    """

    max_mb: float
    max_requests: int
    body_s: float = 60.0


def create_app(service: Service, limits: Limits) -> FastAPI:
    """The server of a model.

    POST / takes an image file as body, or as the file of a form. `?format=` says what comes back,
    else `Accept`: png, what predict writes; json, sizes, classes, shares or objects; view, what the
    page shows. Errors are {"error": one line}: 413 too large, 422 no image that the model takes,
    503 busy.
    """
    app = FastAPI(title="segcore", docs_url=None, redoc_url=None)
    desk = Desk(limits)
    page = PAGE.read_text(encoding="utf-8")

    @app.get("/")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "requests": desk.busy, "max_requests": limits.max_requests}

    @app.get("/model")
    async def model() -> dict[str, Any]:
        return {**service.facts(), "max_mb": limits.max_mb}

    @app.post("/")
    @app.post("/predict")
    async def predict(request: Request) -> Response:
        form = _wanted(request)
        async with desk.place():
            data = await desk.read(request)
            return await _answer(service, form, data, request.headers.get("content-type", ""))

    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _fail)
    return app


class Desk:
    """Counts requests and reads their bodies, within limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.busy = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one of the places.

        Raises:
            HTTPException: 503, none is free.
        """
        most = self.limits.max_requests
        if self.busy >= most:
            raise HTTPException(
                503,
                f"{most} pictures are being worked on, the limit is {most}: try again",
                {"Retry-After": str(RETRY_S), "Connection": "close"},
            )
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    async def read(self, request: Request) -> bytes:
        """The body, of which no more is held than is allowed.

        Raises:
            HTTPException: 413 too long, 408 too slow, 422 empty.
        """
        try:
            async with asyncio.timeout(self.limits.body_s):
                data = await self._collect(request)
        except TimeoutError:
            message = f"the body did not arrive within {self.limits.body_s:g} s: send it again"
            raise HTTPException(408, message, {"Connection": "close"}) from None
        if not data:
            raise HTTPException(422, "the body is empty: send an image file")
        return data

    async def _collect(self, request: Request) -> bytes:
        most = int(self.limits.max_mb * 1e6)
        announced = request.headers.get("content-length", "0")
        data = bytearray()
        if int(announced) <= most:
            async for part in request.stream():
                data += part
                if len(data) > most:
                    break
            else:
                return bytes(data)
        raise HTTPException(
            413,
            f"the body has more than {self.limits.max_mb:g} MB: send a smaller file",
            {"Connection": "close"},
        )


def _wanted(request: Request) -> str:
    """What is to come back.

    Raises:
        HTTPException: 422 no such format.
    """
    form = request.query_params.get("format")
    if form is None:
        return "json" if "application/json" in request.headers.get("accept", "") else "png"
    if form not in FORMATS:
        raise HTTPException(422, str(unknown_name("format", form, FORMATS)))
    return form


async def _answer(service: Service, form: str, data: bytes, content_type: str) -> Response:
    run: dict[str, Callable[[bytes], Any]] = {
        "png": service.png,
        "view": service.view,
        "json": lambda body: service.predict(body).facts,
    }
    try:
        picture = file_in(content_type, data) if is_form(content_type) else data
        made = await run_in_threadpool(run[form], picture)
    except TooLargeError as error:
        raise HTTPException(413, str(error)) from error
    except (DataError, ShapeError) as error:
        raise HTTPException(422, str(error)) from error
    except SegcoreError as error:
        raise HTTPException(500, str(error)) from error
    if form == "png":
        return Response(made, media_type="image/png", headers={"Cache-Control": "no-store"})
    return JSONResponse(dict(made))


async def _refuse(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _fail(request, error)
    line = " ".join(str(error.detail).split())
    return JSONResponse({"error": line}, error.status_code, headers=error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    """Of what nobody foresaw; the traceback is in the server's log."""
    return JSONResponse({"error": f"the server failed: {type(error).__name__}"}, 500)
