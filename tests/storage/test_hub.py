"""The Hub, played by a server on the loopback: plain files travel, errors say where to go."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from egom2p.storage.hub import fetch, push, pushable_files

COMMIT = "a" * 40
FILES = {"model.safetensors": b"weights", "tokenizer.json": b"{}", "evil.pth": b"pickle", "sub/card.md": b"# card"}


class FakeHub(BaseHTTPRequestHandler):
    """The few routes of the Hub that fetching and pushing use; repositories by name."""

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
            rows = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in FILES.items()]
            return self._send(200, rows)
        if self.path.startswith("/api/models/"):
            return self._send(200, {"id": "me/tok", "sha": COMMIT, "siblings": [{"rfilename": p} for p in FILES]})
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        self.log.append((self.path, None, None))
        headers = {"ETag": '"' + name.replace("/", "-") + '"', "X-Repo-Commit": COMMIT}
        return self._send(200, FILES[name], headers, send_body)

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


@pytest.fixture(scope="module")
def hub():
    FakeHub.log = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


PROGRAM = """
import sys
from egom2p.storage.hub import fetch, push
for line in sys.argv[1:]:
    try:
        print("->", eval(line))
    except Exception as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""


def answers(calls, home, **environment):
    """What calls return or raise, in a new process: the library reads its environment once, when imported."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings |= {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    command = [sys.executable, "-c", PROGRAM, *calls]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == len(calls), done.stderr
    return lines


def write_folder(folder):
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w")
    (folder / "inner" / "tokenizer.json").write_text("{}")
    (folder / ".writer").write_text("")
    return folder


PUSHED = ["README.md", "inner/tokenizer.json", "model.safetensors"]


@pytest.fixture(scope="module")
def online(hub, home, tmp_path_factory):
    """Answers of one process that reaches the Hub, and what it asked of it."""
    folder = write_folder(tmp_path_factory.mktemp("made") / "tok")
    calls = {
        "fetched": "fetch('me/tok')",
        "gated": "fetch('me/gated')",
        "absent": "fetch('me/absent')",
        "revision": "fetch('me/tok', revision='no-such')",
        "pushed": f"push({str(folder)!r}, 'me/tok', private=True, readme='# Card')",
    }
    found = answers(calls.values(), home, HF_ENDPOINT=hub, HF_TOKEN="hf_test")
    return dict(zip(calls, found, strict=True)), list(FakeHub.log)


@pytest.fixture(scope="module")
def offline(online, home, hub, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("made") / "tok")
    calls = {"fetched": "fetch('me/tok')", "other": "fetch('me/other')", "pushed": f"push({str(folder)!r}, 'me/tok')"}
    found = answers(calls.values(), home, HF_HUB_OFFLINE="1", HF_ENDPOINT=hub)
    return dict(zip(calls, found, strict=True))


def test_fetching_brings_plain_files_only(online):
    answer, log = online
    folder = Path(answer["fetched"].removeprefix("-> "))
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    assert found == ["model.safetensors", "sub/card.md", "tokenizer.json"]
    assert not any("evil" in path for path, *_ in log)


def test_what_was_fetched_needs_no_network(online, offline):
    assert offline["fetched"] == online[0]["fetched"]
    assert offline["other"].startswith("FileNotFoundError me/other")
    assert "cannot be reached" in offline["other"] and "local folder" in offline["other"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("gated", ["ValueError", "/me/gated", "accept its terms", "HF_TOKEN"]),
        ("absent", ["FileNotFoundError", "no such local folder", "/me/absent"]),
        ("revision", ["FileNotFoundError", "no revision 'no-such'"]),
    ],
)
def test_errors_say_where_to_go(online, case, words):
    assert all(word in online[0][case] for word in words), online[0][case]


def test_local_folders_need_no_hub(tmp_path):
    assert fetch(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="no such folder, and no id"):
        fetch(tmp_path / "gone")
    with pytest.raises(ValueError, match="revision 'v1'"):
        fetch(tmp_path, revision="v1")


def test_pushing_is_one_commit_of_who_is_logged_in(online, offline):
    answer, log = online
    assert answer["pushed"] == f"-> {PUSHED}"
    commits = [(body, token) for path, body, token in log if "/commit/" in path]
    created = [json.loads(body) for path, body, _ in log if path.endswith("/repos/create")]
    assert len(commits) == 1 and created[0].get("private", created[0].get("visibility")) in (True, "private")
    assert commits[0][1] == "Bearer hf_test"
    written = [json.loads(line)["value"].get("path") for line in commits[0][0].decode().splitlines()]
    assert written[1:] == PUSHED
    assert "hf auth login" in offline["pushed"]


def test_a_dry_run_names_the_files(tmp_path):
    assert push(write_folder(tmp_path / "tok"), "me/tok", dry_run=True, readme="x") == PUSHED


@pytest.mark.parametrize(("name", "words"), [("weights.pth", "pickles"), ("run.py", "holds run.py")])
def test_only_plain_files_are_pushed(tmp_path, name, words):
    (write_folder(tmp_path / "tok") / name).write_bytes(b"")
    with pytest.raises(ValueError, match=words):
        push(tmp_path / "tok", "me/tok", dry_run=True)


def test_wrong_ids_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="owner/name"):
        push(write_folder(tmp_path / "tok"), "tok", dry_run=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing to push"):
        pushable_files(tmp_path / "empty")
