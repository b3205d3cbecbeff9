"""A hub on this machine: the two kinds of requests that matter, byte ranges, redirects to a store, and faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/tiny-model"


class FakeHub:
    """Serves ``files`` as REPO.

    Attributes:
        ranges: (file, start, stop) of every range that was sent.
        faults: popped one per download: an HTTP status, "cut" (half of the bytes), "whole" (the range is ignored),
            "long" (more than asked for), or None.
        status: when set, the answer to every question for the listing.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.ranges: list[tuple[str, int, int]] = []
        self.faults: list[int | str | None] = []
        self.status: tuple[int, str] | None = None
        self.endpoint = ""

    def listing(self) -> bytes:
        siblings = []
        for name, data in self.files.items():
            lfs = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
            entry = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            siblings.append({**entry, "lfs": lfs} if name.endswith(".safetensors") else entry)
        return json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode()


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FakeHub]:
    hub = FakeHub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            if path.startswith("/api/models/"):
                self.list_files(path.removeprefix("/api/models/"))
            elif match := re.fullmatch(rf"/{REPO}/resolve/{COMMIT}/(.+)", path):
                self.answer(302, b"", Location=f"/store/{match[1]}")
            elif path.startswith("/store/") and path.removeprefix("/store/") in hub.files:
                self.send_range(path.removeprefix("/store/"))
            else:
                self.answer(404, b"")

        def list_files(self, what: str) -> None:
            if hub.status is not None:
                self.answer(hub.status[0], b"{}", **{"X-Error-Code": hub.status[1]})
            elif what.startswith(f"{REPO}/revision/"):
                self.answer(200, hub.listing(), **{"Content-Type": "application/json"})
            else:
                self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

        def send_range(self, name: str) -> None:
            fault = hub.faults.pop(0) if hub.faults else None
            if isinstance(fault, int):
                return self.answer(fault, b"")
            data = hub.files[name]
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert match is not None
            start, stop = int(match[1]), int(match[2]) + 1
            assert stop <= len(data)
            if fault == "whole":
                return self.answer(200, data)
            hub.ranges.append((name, start, stop))
            told = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            if fault == "cut":
                self.answer(206, data[start : start + (stop - start) // 2], stop - start, **told)
                self.close_connection = True
                return None
            return self.answer(206, data[start:stop] + (b"x" if fault == "long" else b""), **told)

        def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
