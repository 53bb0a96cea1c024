"""The Hub, played by a server on the loopback, and programs that talk to it in a process of their own."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class FakeHub(BaseHTTPRequestHandler):
    """The few routes of the Hub that fetching and pushing use; every repository but `gated` and `absent` holds `files`.

    log   of what was asked: path, body, authorization
    """

    files: Mapping[str, bytes] = {}
    log: list = []

    def do_HEAD(self):
        self._answer(send_body=False)

    def do_GET(self):
        self._answer(send_body=True)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.log.append((self.path, body, self.headers.get("Authorization")))
        if "/api/validate-yaml" in self.path:
            return self._send(200, {"errors": [], "warnings": []})
        if "preupload" in self.path:
            files = json.loads(body)["files"]
            return self._send(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if self.path.endswith("/api/repos/create"):
            return self._send(200, {"url": self._url("me/tok"), "name": "me/tok"})
        return self._send(200, {"commitUrl": self._url(f"me/tok/commit/{COMMIT}"), "commitOid": COMMIT})

    def log_message(self, *_):
        pass

    def _answer(self, send_body):
        if "gated" in self.path:
            return self._send(403, {"error": "restricted"}, {"X-Error-Code": "GatedRepo"})
        if "absent" in self.path:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if "/revision/no-such" in self.path:
            return self._send(404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in self.path:
            rows = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in self.files.items()]
            return self._send(200, rows)
        if self.path.startswith("/api/models/"):
            return self._send(200, {"id": "me/tok", "sha": COMMIT, "siblings": [{"rfilename": p} for p in self.files]})
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        self.log.append((self.path, None, None))
        headers = {"ETag": '"' + name.replace("/", "-") + '"', "X-Repo-Commit": COMMIT}
        return self._send(200, self.files[name], headers, send_body)

    def _url(self, path):
        return f"http://{self.headers['Host']}/{path}"

    def _send(self, code, content, headers=None, send_body=True):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)


@contextmanager
def hub_with(files: Mapping[str, bytes]) -> Iterator[tuple[str, list]]:
    """The address of a Hub whose repositories hold these files, and the log of what is asked of it."""
    handler = type("Handler", (FakeHub,), {"files": dict(files), "log": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.log
    finally:
        server.shutdown()
        server.server_close()


PROGRAM = """
import sys
exec(sys.argv[1])
for line in sys.argv[2:]:
    try:
        print("->", eval(line))
    except Exception as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""


def answers(imports, calls, home, **environment):
    """What calls return or raise, in a new process: the library reads its environment once, when imported."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings |= {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    command = [sys.executable, "-c", PROGRAM, imports, *calls]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == len(calls), done.stderr
    return lines
