"""A headless Chromium that runs tasks: its page asks for one after the other, and tells what became of it.

Nothing drives the browser: it is started once with the page's address, and everything else is said over HTTP.
"""

import json
import queue
import subprocess
from asyncio import to_thread
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from contract.lifetime import spawn

CHROMIUM = "/usr/lib/chromium/chromium-headless-shell"  # not the script in /usr/bin: the browser outlives that one
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")
TASK_TIMEOUT_S = 120.0
END = None


class Browser:
    """The page, as the tests see it."""

    def __init__(self, log: Path) -> None:
        self.tasks: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._log = log

    async def run(self, task: Mapping[str, Any]) -> Any:
        """What the page saw. Raises AssertionError if it failed, with what it said."""
        self.tasks.put(task)
        try:
            answer = await to_thread(self.told.get, timeout=TASK_TIMEOUT_S)
        except queue.Empty:
            raise AssertionError(f"the page tells nothing:\n{self._log.read_text()[-4000:]}") from None
        assert "seen" in answer, f"{answer['fault']}\n{self._log.read_text()[-4000:]}"
        return answer["seen"]


@contextmanager
def browser(modules: Mapping[str, Path], folder: Path) -> Iterator[Browser]:
    """Chromium with the page `page`, whose module and those of other pages are given by name."""
    log = folder / "chromium.log"
    page = Browser(log)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(page, modules))
    serving = Thread(target=server.serve_forever)
    serving.start()
    command = (CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"http://127.0.0.1:{server.server_port}/page")
    try:
        with log.open("wb") as sink:
            process = spawn(command, stdout=sink, stderr=sink)
        try:
            yield page
        finally:
            _end(process)
    finally:
        page.tasks.put(END)
        server.shutdown()
        server.server_close()
        serving.join()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _handler(page: Browser, modules: Mapping[str, Path]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, dot, _ = self.path.removeprefix("/").partition("?")[0].partition(".js")
            if name == "task":
                if (task := page.tasks.get()) is not END:
                    self._answer("application/json", json.dumps(task))
            elif name in modules and dot:
                self._answer("text/javascript", modules[name].read_text())
            elif name in modules:
                self._answer("text/html", f'<!doctype html><body><script type="module" src="/{name}.js"></script>')
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            page.told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._answer("text/plain", "")

        def _answer(self, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("content-type", f"{kind}; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
