"""A stand-in of the Hugging Face hub on loopback: what ``snapshot_download`` asks for, and a record of it."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves directories as model repositories while the ``with`` block lasts.

    Attributes:
        endpoint: For ``HF_ENDPOINT``.
        downloaded: Names of the files whose content was asked for.
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.downloaded: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            """Answers /api/models/ID/revision, .../tree and /ID/resolve/REVISION/FILE."""

            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                """Stay quiet."""

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                for name, directory in repositories.items():
                    if path.startswith(f"/api/models/{name}/revision/") or path == f"/api/models/{name}":
                        siblings = [{"rfilename": file.name} for file in sorted(directory.iterdir())]
                        info = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings}
                        self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
                        return
                    if path.startswith(f"/api/models/{name}/tree/"):
                        tree = [
                            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                            for file in sorted(directory.iterdir())
                        ]
                        self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
                        return
                    file = directory / path.rpartition("/")[2]
                    if path.startswith(f"/{name}/resolve/") and file.is_file():
                        content = file.read_bytes()
                        if self.command == "GET":
                            hub.downloaded.append(file.name)
                        self.answer(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
                        return
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

            def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
