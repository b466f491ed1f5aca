"""Pages in a real browser: Chromium without a window, asked and clicked through its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


class Page:
    """An opened page: what it requested and complained of, and ways to ask and click it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: WebSocketClientConnection) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loop, self._socket, self._number, self._session = loop, socket, 0, None

    def call(self, method: str, **params: object) -> dict:
        """Return the answer to a command of the protocol; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._loop.run_until_complete(self._send(json.dumps(message)))
        while True:
            answer = json.loads(self._loop.run_until_complete(self._received()))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    async def _send(self, text: str) -> None:
        await self._socket.write_message(text)

    async def _received(self) -> str:
        return await asyncio.wait_for(self._socket.read_message(), 90)

    def attach(self, target: str) -> None:
        """Talk to a tab from here on."""
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]  # fmt: skip
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def ask(self, script: str) -> object:
        """Return the value of an expression in the page."""
        given = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in given, given
        return given["result"].get("value")

    def wait(self, condition: str, *, seconds: float = 90) -> None:
        """Wait until an expression in the page is true."""
        end = time.monotonic() + seconds
        while not self.ask(condition):
            assert time.monotonic() < end, (condition, self.complaints)
            time.sleep(0.1)

    def click(self, x: float, y: float) -> None:
        """Click a point of the window."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def move(self, x: float, y: float) -> None:
        """Move the mouse to a point of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path, **options: object) -> None:
        """Write what the window shows."""
        image = self.call("Page.captureScreenshot", **options)["data"]
        path.write_bytes(base64.b64decode(image))

    def _note(self, event: dict) -> None:
        kind, params = event.get("method"), event.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif kind == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.complaints.append(json.dumps(params["args"])[:500])
        elif kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])

    @property
    def fetched(self) -> list[str]:
        """What it requested, but for itself and what it has in it."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]


async def _connected(profile: Path) -> WebSocketClientConnection:
    """Return the connection to a browser that has just been started."""
    for _ in range(600):
        with contextlib.suppress(OSError, ValueError):
            port, place = (profile / "DevToolsActivePort").read_text().split()
            return await websocket_connect(f"ws://127.0.0.1:{port}{place}", max_message_size=2**28)
        await asyncio.sleep(0.1)
    raise AssertionError("chromium did not start within a minute")


@contextlib.contextmanager
def opened(path: Path, *, width: int = 1500, height: int = 1050) -> Iterator[Page]:
    """Open a file of this machine in a browser that never ran before."""
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run"),
                *("--disable-dev-shm-usage", f"--window-size={width},{height}", "about:blank"),
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            socket = loop.run_until_complete(_connected(Path(profile)))
            page = Page(loop, socket)
            page.attach(page.call("Target.createTarget", url="about:blank")["targetId"])
            page.call(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=height, deviceScaleFactor=1, mobile=False,
            )  # fmt: skip
            page.call("Page.navigate", url=path.resolve().as_uri())
            page.wait("document.readyState === 'complete'")
            yield page
            socket.close()
        finally:
            process.terminate()
            process.wait(30)
            loop.close()
