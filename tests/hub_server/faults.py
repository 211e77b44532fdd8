"""What a test may ask of the server: to fail in a given way, and to say what was asked of it."""

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Cut = Literal["before", "upload", "download", "after"]


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path match.

    The connection is cut before the request is handled, in the middle of the upload, in the
    middle of the download, or after all is done but before anything is answered.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    delay: float = 0
    cut: Cut | None = None

    def __post_init__(self) -> None:
        if self.cut not in (None, *get_args(Cut)):
            raise ValueError(f"cut is one of {get_args(Cut)}, not {self.cut!r}.")
        if not (self.status or self.delay or self.cut):
            raise ValueError("A fault has a status, a delay or a cut.")


@dataclass
class LoggedRequest:
    method: str
    path: str  # decoded, without query
    status: int | None = None  # None: not answered


class Faults:
    """ASGI middleware: keeps a log of requests and makes those fail that a test wants to."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.faults: list[Fault] = []
        self.requests: list[LoggedRequest] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = LoggedRequest(scope["method"], unquote(scope["raw_path"].decode()))
        self.requests.append(request)
        fault = self._next_fault(request)

        async def send_and_log(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)

        if fault is None:
            await self.app(scope, receive, send_and_log)
            return
        # ASGI knows no way to cut a connection; uvicorn's `send` is a method of what holds it.
        connection = Connection(scope, receive, send_and_log, send.__self__.transport)
        await asyncio.sleep(fault.delay)
        if fault.status is not None:
            await answer(fault.status, send_and_log)
        elif fault.cut == "before":
            await connection.cut()
        elif fault.cut == "upload":
            await self.app(scope, connection.receive_half, send_and_log)
        elif fault.cut == "download":
            await self.app(scope, receive, connection.send_half)
        elif fault.cut == "after":
            await self.app(scope, receive, connection.send_nothing)
            await connection.cut()
        else:
            await self.app(scope, receive, send_and_log)

    def _next_fault(self, request: LoggedRequest) -> Fault | None:
        for fault in self.faults:
            matches = re.fullmatch(fault.method, request.method)
            if fault.times > 0 and matches and re.search(fault.path, request.path):
                fault.times -= 1
                return fault
        return None


async def answer(status: int, send: Send) -> None:
    body = json.dumps({"error": f"A fault was asked for: status {status}"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Connection:
    """A request's two directions, either of which can be cut half-way."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, transport: asyncio.Transport) -> None:
        self.receive = receive
        self.send = send
        self.transport = transport
        self.to_receive = content_length(scope) // 2
        self.to_send = 0  # not known before the answer starts
        self.is_cut = False

    async def cut(self) -> None:
        """Close without an answer; what has been written is still sent."""
        self.is_cut = True
        self.transport.close()
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def receive_half(self) -> Message:
        if self.is_cut:
            return {"type": "http.disconnect"}
        message = await self.receive()
        half = message["body"][: self.to_receive]
        self.to_receive -= len(half)
        if self.to_receive == 0:
            await self.cut()
        return {"type": "http.request", "body": half, "more_body": True}

    async def send_half(self, message: Message) -> None:
        if self.is_cut:
            return
        if message["type"] == "http.response.start":
            self.to_send = content_length(message) // 2
            await self.send(message)
            return
        half = message["body"][: self.to_send]
        self.to_send -= len(half)
        await self.send({**message, "body": half, "more_body": True})
        if self.to_send == 0:
            await self.cut()

    async def send_nothing(self, message: Message) -> None:
        pass


def content_length(message: Scope | Message) -> int:
    return int(dict(message["headers"]).get(b"content-length", 0))
