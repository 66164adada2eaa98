"""A service for embeddings and classes, with FastAPI.

    REGCACHE_BUNDLE=clip.regcache uvicorn --app-dir examples server:app --workers 2

    curl --data-binary @cat.jpg http://127.0.0.1:8000/classify
    curl --data-binary @cat.jpg http://127.0.0.1:8000/embed

Each worker process opens the bundle itself, when it starts: an engine does not survive a fork.
FastAPI runs these functions in its pool of threads, and the engine may be called by all of them;
THREADS bounds how many run at once, LARGEST what one request may send; uvicorn's
--limit-concurrency bounds how many requests wait. Needs: pip install 'regcache-deploy[cpu]' fastapi
uvicorn.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse

import regcache_engines
from regcache_engines import Clip, DataError, RegCacheError

THREADS = int(os.environ.get("REGCACHE_THREADS", "4"))
LARGEST = int(os.environ.get("REGCACHE_LARGEST_MIB", "32")) * 2**20


async def upload(request: Request) -> bytes:
    """The body; a larger one is refused before it fills the memory."""
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > LARGEST:
            raise HTTPException(413, f"a photograph may have {LARGEST} bytes")
    return bytes(found)


Photograph = Annotated[bytes, Depends(upload)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Ready means warm: the first request pays for nothing that a later one does not pay."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    with regcache_engines.open(os.environ["REGCACHE_BUNDLE"], threads=1) as clip:
        clip.warm_up(1)
        app.state.clip = clip
        yield


app = FastAPI(title="regcache", lifespan=lifespan)


@app.exception_handler(RegCacheError)
def refuse(request: Request, error: RegCacheError) -> JSONResponse:
    """An image that cannot be read is the caller's fault; everything else is ours."""
    status = 422 if isinstance(error, DataError) else 500
    return JSONResponse({"error": str(error)}, status)


@app.post("/embed")
def embed(image: Photograph, request: Request) -> dict[str, list[float]]:
    """The embedding of a photograph, of length 1."""
    clip: Clip = request.app.state.clip
    return {"embedding": clip.embed_images(image)[0].tolist()}


@app.post("/classify")
def classify(
    image: Photograph, request: Request, top: Annotated[int, Query(ge=1)] = 5
) -> list[dict[str, object]]:
    """The likeliest classes of a photograph, best first."""
    clip: Clip = request.app.state.clip
    return [asdict(found) for found in clip.classify(image, top=top)[0]]


@app.get("/healthz")
def healthz(request: Request) -> dict[str, object]:
    """What is served, and how full the ends of the integer ranges were so far."""
    clip: Clip = request.app.state.clip
    return {
        "bundle": clip.bundle.manifest["files"]["model.onnx"]["sha256"],
        "saturation": [asdict(probe) for probe in clip.saturation()],
    }
