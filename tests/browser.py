"""Headless Chromium for tests, driven through chromedriver by the standard library alone."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


class Browser:
    """One window; closed with `close`."""

    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 900)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait_for_driver()
            options = {
                "binary": CHROMIUM,
                "args": [*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"],
            }
            if size[0] < 600:
                options["mobileEmulation"] = {
                    "deviceMetrics": {"width": size[0], "height": size[1], "pixelRatio": 2.0}
                }
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{made['sessionId']}"
        except BaseException:
            self._process.terminate()
            self._process.wait()
            raise

    def _wait_for_driver(self) -> None:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self._address}/status", timeout=5).close()
                return
            time.sleep(0.05)
        raise TimeoutError("chromedriver does not answer")

    def _ask(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}{path}", method=method, data=data)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(json.load(error)["value"]["message"]) from error

    def open(self, address: str) -> None:
        self._ask("POST", f"{self._session}/url", {"url": address})

    def run(self, script: str, *values):
        """Return what the body of a JavaScript function returns, its arguments being `arguments`."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": list(values)})

    def wait(self, script: str, *values, seconds: float = 120):
        """Run the script until it returns something true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *values)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} stayed {value!r} for {seconds} s")
            time.sleep(0.1)
        return value

    def messages(self) -> list[str]:
        """Return what the console has shown since the last call: errors and warnings of the pages."""
        entries = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def close(self) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self._ask("DELETE", self._session)
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def serve(folder: Path):
    """Serve a folder on this machine; yields the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *values):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
