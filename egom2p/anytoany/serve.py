"""Captions over HTTP on this machine: `python -m egom2p.anytoany.serve model=<directory>`.

POST /api/v1/inference {"embedding": [B * W numbers]} -> {"texts": [B captions]}, W = 1024 for ImageBind's vectors.
POST /api/v1/file <bytes of a video or picture> -> {"texts": [caption], "note": how it is unlike the training data, or
null}. Which of the two a model answers follows from what it perceives.
GET / or /api/v1/health -> {"status": "ok", "model", "prompt", "width": W or null, "max_batch": most vectors at once,
"max_file_bytes": largest file, 0 where files are not perceived}.
Errors: {"error": "..."} with status 4xx or 5xx.
Requests of web pages are refused (403): Host and Origin, where sent, must be this machine and port.
"""

import contextlib
import io
import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from PIL import Image

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.answers.inference import Inference, typed_prompt
from egom2p.anytoany.conversations.conversation import PLACEHOLDER
from egom2p.anytoany.perception.familiarity import Familiarity
from egom2p.anytoany.perception.media_files import features_of_vectors
from egom2p.anytoany.perception.source import VectorsConfig, source_of_kind
from egom2p.anytoany.saving import load_anytoany
from egom2p.config import Count, Natural, Positive, run_main, strict
from egom2p.data.clips.image_files import PICTURE_SUFFIXES
from egom2p.data.clips.video_files import VideoFile
from egom2p.jobs.workers import choose_device

INFERENCE, FILE, HEALTH = "/api/v1/inference", "/api/v1/file", "/api/v1/health"
_METHODS = {INFERENCE: "POST", FILE: "POST", HEALTH: "GET", "/": "GET"}
# Containers are told by their first bytes, before a decoder sees them: playlists, which name other files, are none.
_FIRST_BYTES = {
    ".mp4": re.compile(rb".{4}(ftyp|moov|mdat|wide|free|skip)", re.DOTALL),
    ".webm": re.compile(rb"\x1a\x45\xdf\xa3"),
    ".avi": re.compile(rb"RIFF.{4}AVI ", re.DOTALL),
    ".png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    ".jpg": re.compile(rb"\xff\xd8\xff"),
    ".gif": re.compile(rb"GIF8[79]a"),
    ".webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
_MAX_UPLOADS = 4  # at once: each lies on the disk until it is answered
_CHUNK_BYTES = 2**20
_MAX_FRAMES = 16  # of the largest size, of an animation
# A number in JSON with all its digits, sign, exponent and comma.
_BYTES_PER_NUMBER = 32
# Of a refused request so much is read and forgotten: a client that is still sending would not see the answer.
_DRAINED_BYTES, _DRAINED_S = 64 * 2**20, 2.0
_BUSY = "HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}"
_HERE = ("localhost", "127.0.0.1", "[::1]")
_MAX_LENGTH_DIGITS = 15
_log = logging.getLogger(__name__)


@strict
class ServeConfig:
    """One server.

    model      any-to-any directory
    prompt     with one placeholder, that of `kind`; \\n is a line break
    kind       as what vectors and files are perceived
    port       0: a free one
    max_batch  vectors of one request; a longer body is refused before it is taken in. They are answered
               answer.batch_size at a time
    timeout_s  a request that has not arrived after so long is dropped, however it trickles in
    max_connections  more at once are answered with 503
    max_file_mb  of an uploaded video or picture; the first clip of a video is what is answered
    max_pixels   of a frame: a small file may hold frames that fill the memory
    folder     uploaded files lie below it until they are answered
    wait_s     a request that the model was not free for after so long is answered with 503
    """

    model: str
    prompt: str = "Video:\n{video}\nCaption the previous video."
    kind: Literal["video", "image", "audio"] = "video"
    answer: AnswerConfig = AnswerConfig(max_new_tokens=300)
    host: Literal["127.0.0.1", "localhost", "::1"] = "127.0.0.1"  # address that it listens on: this machine alone
    port: Natural = 8080
    max_batch: Count = 64
    timeout_s: Positive = 30.0
    max_connections: Count = 256
    wait_s: Positive = 300.0
    max_file_mb: Positive = 64.0
    max_pixels: Count = 4096 * 2304
    folder: str = "outputs/serve"
    device: str = "cpu"

    def __post_init__(self) -> None:
        found = PLACEHOLDER.findall(self.text)
        if found != [self.kind]:
            raise ValueError(
                f"prompt needs {{{self.kind}}} once (kind is {self.kind}), found {found or 'no placeholder'}"
            )
        if self.port > 65535:
            raise ValueError(f"port must be in 0 ... 65535, got {self.port}")

    @property
    def text(self) -> str:
        return typed_prompt(self.prompt)


class RefusedRequest(Exception):
    """A request that is not answered: HTTP status, and what was wrong with it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CaptionServer(ThreadingHTTPServer):
    """Answers one request at a time with the model; others wait. `server_port` tells the port."""

    daemon_threads = True
    request_queue_size = 1024  # connections that wait to be taken; the library's five are refused in any rush

    def __init__(self, config: ServeConfig, inference: Inference) -> None:
        """ValueError where the model perceives nothing of this kind, or the port is taken."""
        self.config, self.inference = config, inference
        source = inference.model.config.perception[source_of_kind(inference.model.config.perception, config.kind)]
        self.width = source.width if isinstance(source, VectorsConfig) else None
        self.max_bytes = 0 if self.width is None else config.max_batch * self.width * _BYTES_PER_NUMBER + 1024
        self.max_file_bytes = int(config.max_file_mb * 1e6) if self.width is None else 0
        self.uploads = threading.BoundedSemaphore(_MAX_UPLOADS)
        self._model_lock = threading.Lock()
        self._free = threading.BoundedSemaphore(config.max_connections)
        if config.host == "::1":
            self.address_family = socket.AF_INET6
        try:
            super().__init__((config.host, config.port), _Handler)
        except OSError as error:
            raise ValueError(
                f"port {config.port} of {config.host}: {error.strerror}; port=0 takes a free one"
            ) from None

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            return super().process_request(request, client_address)
        try:
            request.settimeout(0.1)
            body = json.dumps({"error": f"{self.config.max_connections} connections are open, the most at once"})
            request.sendall(_BUSY.format(len(body), body).encode())
        except OSError:
            pass
        return self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event; the library would print thirty lines of each."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("a connection failed")

    @contextlib.contextmanager
    def _model(self) -> Iterator[None]:
        """Hold the model for one request."""
        if not self._model_lock.acquire(timeout=self.config.wait_s):
            raise RefusedRequest(503, f"the model was busy with other requests for {self.config.wait_s:g} s")
        try:
            yield
        finally:
            self._model_lock.release()

    def captions(self, body: bytes) -> list[str]:
        """Texts for the body of a request."""
        vectors_BW = self._vectors(body)
        items = [features_of_vectors(vector_W) for vector_W in vectors_BW]
        config = self.config
        with self._model():
            questions = [self.inference.question(config.text, [(config.kind, item)]) for item in items]
            return [answer.text for answer in self.inference.answer(questions, config.answer)]

    def caption_of_file(self, file: Path) -> dict[str, Any]:
        """Answer about the first clip of an uploaded video, or about a picture; RefusedRequest for anything else."""
        with file.open("rb") as opened:
            first = opened.read(16)
        suffix = next((suffix for suffix, pattern in _FIRST_BYTES.items() if pattern.match(first)), None)
        if suffix is None:
            known = ", ".join(_FIRST_BYTES)
            raise RefusedRequest(415, f"the body is no video or picture by its first bytes; known are {known}")
        named = file.rename(file.with_suffix(suffix))
        config = self.config
        with self._model():
            try:
                check_frame_size(named, config.max_pixels)
                clip = next(self.inference.perceive_file(config.kind, str(named)), None)
            except (ValueError, OSError, Image.DecompressionBombError) as error:
                raise RefusedRequest(400, str(error).replace(str(named), "the file").partition(" (")[0]) from None
            if clip is None:
                raise RefusedRequest(400, "the file: no segment of it is long enough, with enough frames, for one clip")
            question = self.inference.question(config.text, [(config.kind, clip.features)])
            texts = [answer.text for answer in self.inference.answer([question], config.answer)]
            return {"texts": texts, "note": self.inference.note(config.kind, clip, "the file")}

    def _vectors(self, body: bytes) -> np.ndarray:
        assert self.width is not None
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            raise RefusedRequest(400, "the body is not valid JSON") from None
        if not isinstance(content, dict) or "embedding" not in content:
            raise RefusedRequest(400, 'wanted an object with the key "embedding"')
        numbers = content["embedding"]
        if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
            raise RefusedRequest(400, "embedding must be one flat list of numbers")
        if not numbers or len(numbers) % self.width:
            raise RefusedRequest(400, f"embedding has {len(numbers)} numbers, wanted a multiple of {self.width}")
        if len(numbers) > self.config.max_batch * self.width:
            raise RefusedRequest(413, f"{len(numbers) // self.width} vectors, at most {self.config.max_batch} at once")
        largest = float(np.finfo(np.float32).max)  # integers of Python may be larger than any float
        if not all(abs(number) < largest for number in numbers):
            raise RefusedRequest(400, "embedding holds numbers that are not finite")
        return np.array(numbers, dtype=np.float32).reshape(-1, self.width)


def check_frame_size(file: Path, max_pixels: int) -> None:
    """ValueError for larger frames, or an animation of too many, by what the file says before one is decoded."""
    count = 1
    if file.suffix in PICTURE_SUFFIXES:
        with Image.open(file) as picture:
            (width, height), count = picture.size, getattr(picture, "n_frames", 1)
    else:
        video = VideoFile(file)  # its frames are read as they are needed, those of an animation all at once
        width, height = video.width, video.height
    if width * height > max_pixels or width * height * count > _MAX_FRAMES * max_pixels:
        raise ValueError(f"{file}: {count} frames of {width} x {height}, at most {max_pixels} pixels are taken")


class _Arriving(io.RawIOBase):
    """What a connection sends, up to a moment; after it reading is a TimeoutError, however little each byte waits."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection, self.end_s = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self.end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request did not arrive in time")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: CaptionServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self._arriving = _Arriving(self.connection)
        self.rfile = io.BufferedReader(self._arriving)

    def handle_one_request(self) -> None:
        self._arriving.end_s = time.monotonic() + self.server.config.timeout_s
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Also refuses what a web page sends: of another site, or under a name that was bent to this machine."""
        if not super().parse_request():
            return False
        hosts = [f"{host}:{self.server.server_port}" for host in _HERE]
        found, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        # Every browser names a host; what does not is no browser.
        if len(found) > 1 or found and found[0].strip().lower() not in hosts:
            self._refuse(RefusedRequest(403, f"Host must be one of {', '.join(hosts)}"))
            return False
        if origin is not None and origin.strip().lower() not in [f"http://{host}" for host in hosts]:
            self._refuse(RefusedRequest(403, "requests of other sites are not answered"))
            return False
        return True

    def do_GET(self) -> None:
        server, config = self.server, self.server.config
        if _METHODS.get(self._where) != "GET":
            return self._refuse(self._wrong_address())
        facts = {"model": config.model, "prompt": config.text, "width": server.width, "max_batch": config.max_batch}
        facts |= {"max_file_bytes": server.max_file_bytes}
        return self._send(200, {"status": "ok", **facts, "inference": FILE if server.width is None else INFERENCE})

    def do_POST(self) -> None:
        try:
            answer = self._answer_to_file() if self._where == FILE else {"texts": self.server.captions(self._body())}
        except RefusedRequest as refused:
            return self._refuse(refused)
        except ConnectionError:
            raise  # the client is gone
        except Exception:  # noqa: BLE001, one broken request must not end the server
            _log.exception("a request failed")
            return self._refuse(RefusedRequest(500, "the model failed; the server's log tells why"))
        return self._send(200, answer)

    def _answer_to_file(self) -> dict[str, Any]:
        length = self._length(self.server.max_file_bytes)
        if not self.server.uploads.acquire(blocking=False):
            raise RefusedRequest(503, f"{_MAX_UPLOADS} files are being answered, the most at once")
        try:
            folder = Path(self.server.config.folder)
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder, prefix="upload-") as own:
                file = Path(own) / "file"
                with file.open("wb") as opened:
                    for start in range(0, length, _CHUNK_BYTES):
                        opened.write(self._read(min(_CHUNK_BYTES, length - start)))
                return self.server.caption_of_file(file)
        finally:
            self.server.uploads.release()

    def _body(self) -> bytes:
        return self._read(self._length(self.server.max_bytes))

    def _length(self, max_bytes: int) -> int:
        """Bytes of the body; RefusedRequest where this address takes none, or not so many."""
        if _METHODS.get(self._where) != "POST":
            raise self._wrong_address()
        if not max_bytes:
            other = FILE if self._where == INFERENCE else INFERENCE
            raise RefusedRequest(404, f"this model perceives {'files' if other == FILE else 'vectors'}: POST {other}")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise RefusedRequest(411, "a request needs one Content-Length")
        if len(length) > _MAX_LENGTH_DIGITS or int(length) > max_bytes:
            shown = length if len(length) <= _MAX_LENGTH_DIGITS else f"{length[:_MAX_LENGTH_DIGITS]}..."
            raise RefusedRequest(413, f"the body has {shown} bytes, at most {max_bytes} are read")
        return int(length)

    def _read(self, count: int) -> bytes:
        try:
            body = self.rfile.read(count)
        except TimeoutError:
            raise RefusedRequest(408, "the body did not arrive in time") from None
        if len(body) < count:
            raise RefusedRequest(400, f"the body ended {count - len(body)} bytes early")
        return body

    @property
    def _where(self) -> str:
        return self.path.partition("?")[0]

    def _wrong_address(self) -> RefusedRequest:
        return RefusedRequest(
            405 if self._where in _METHODS else 404, f"wanted POST {INFERENCE} or {FILE}, or GET {HEALTH}"
        )

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses itself (a broken request line, an unknown method), as JSON too."""
        self._refuse(RefusedRequest(405 if code == 501 else code, message or explain or "refused"))

    def _refuse(self, refused: RefusedRequest) -> None:
        self.close_connection = True  # what was not read would be taken for the next request
        self._send(refused.status, {"error": str(refused)})
        self._drain()

    def _drain(self) -> None:
        self.wfile.flush()
        self._arriving.end_s, left = time.monotonic() + _DRAINED_S, _DRAINED_BYTES
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (got := self.rfile.read1(65536)):
                left -= len(got)
        except OSError:
            return  # the client is gone, or sends no more: it has had its answer

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.connection.settimeout(self.server.config.timeout_s)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        text = (format % values).translate(self._control_char_table)  # a client writes no escapes into our terminal
        _log.info("%s %s", self.address_string(), text)


def main(config: ServeConfig) -> None:
    """Serve until interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = load_anytoany(config.model, device=choose_device(config.device))
    with CaptionServer(config, Inference(model, Familiarity.load(config.model))) as server:
        host = f"[{config.host}]" if ":" in config.host else config.host
        _log.info(
            "serving %s on http://%s:%d%s (Ctrl-C ends it)",
            config.model,
            host,
            server.server_port,
            FILE if server.width is None else INFERENCE,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            _log.info("stopped")


if __name__ == "__main__":
    run_main(ServeConfig, main, default_config="default/anytoany/serve.yaml", description=str(__doc__))
