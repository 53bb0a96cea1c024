"""Captions over HTTP on this machine: `python -m egom2p.anytoany.serve model=<directory>`.

POST /api/v1/inference {"embedding": [B * W numbers]} -> {"texts": [B captions]}, W = 1024 for ImageBind's vectors.
GET / or /api/v1/health -> {"status": "ok", "model": ..., "prompt": ..., "width": W, "max_batch": most vectors at once}.
Errors: {"error": "..."} with status 4xx or 5xx.
Requests of web pages are refused (403): Host and Origin, where sent, must be this machine and port.
"""

import io
import json
import logging
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.answers.inference import Inference, typed_prompt
from egom2p.anytoany.conversations.conversation import PLACEHOLDER
from egom2p.anytoany.perception.media_files import features_of_vectors
from egom2p.anytoany.saving import load_anytoany
from egom2p.config import run_main, strict
from egom2p.jobs.workers import choose_device

INFERENCE, HEALTH = "/api/v1/inference", "/api/v1/health"
_METHODS = {INFERENCE: "POST", HEALTH: "GET", "/": "GET"}
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

    model      any-to-any directory whose perception source is `vectors`
    prompt     with one placeholder, that of `kind`; \\n is a line break
    kind       as what the vectors are perceived
    port       0: a free one
    max_batch  vectors of one request; a longer body is refused before it is taken in. They are answered
               answer.batch_size at a time
    timeout_s  a request that has not arrived after so long is dropped, however it trickles in
    max_connections  more at once are answered with 503
    """

    model: str
    prompt: str = "Video:\n{video}\nCaption the previous video."
    kind: Literal["video", "image", "audio"] = "video"
    answer: AnswerConfig = AnswerConfig(max_new_tokens=300)
    host: Literal["127.0.0.1", "localhost", "::1"] = "127.0.0.1"
    port: int = 8080
    max_batch: int = 64
    timeout_s: float = 30.0
    max_connections: int = 256
    device: str = "cpu"

    def __post_init__(self) -> None:
        found = PLACEHOLDER.findall(self.text)
        if found != [self.kind]:
            raise ValueError(
                f"prompt needs {{{self.kind}}} once (kind is {self.kind}), found {found or 'no placeholder'}"
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be in 0 ... 65535, got {self.port}")
        if self.max_batch < 1 or self.max_connections < 1 or not 0 < self.timeout_s < float("inf"):
            raise ValueError(
                f"max_batch, max_connections and timeout_s must be positive, got {self.max_batch}, "
                f"{self.max_connections} and {self.timeout_s}"
            )

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
        """ValueError where the model perceives no vectors, or the port is taken."""
        self.config, self.inference = config, inference
        self.width = inference.vector_width
        self.max_bytes = config.max_batch * self.width * _BYTES_PER_NUMBER + 1024
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

    def captions(self, body: bytes) -> list[str]:
        """Texts for the body of a request."""
        vectors_BW = self._vectors(body)
        items = [features_of_vectors(vector_W) for vector_W in vectors_BW]
        config = self.config
        with self._model_lock:
            questions = [self.inference.question(config.text, [(config.kind, item)]) for item in items]
            return [answer.text for answer in self.inference.answer(questions, config.answer)]

    def _vectors(self, body: bytes) -> np.ndarray:
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
        return self._send(200, {"status": "ok", **facts, "inference": INFERENCE})

    def do_POST(self) -> None:
        try:
            body = self._body()
            texts = self.server.captions(body)
        except RefusedRequest as refused:
            return self._refuse(refused)
        except ConnectionError:
            raise  # the client is gone
        except Exception:  # noqa: BLE001, one broken request must not end the server
            _log.exception("a request failed")
            return self._refuse(RefusedRequest(500, "the model failed; the server's log tells why"))
        return self._send(200, {"texts": texts})

    def _body(self) -> bytes:
        if _METHODS.get(self._where) != "POST":
            raise self._wrong_address()
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise RefusedRequest(411, "a request needs one Content-Length")
        if len(length) > _MAX_LENGTH_DIGITS or int(length) > self.server.max_bytes:
            shown = length if len(length) <= _MAX_LENGTH_DIGITS else f"{length[:_MAX_LENGTH_DIGITS]}..."
            raise RefusedRequest(413, f"the body has {shown} bytes, at most {self.server.max_bytes} are read")
        try:
            body = self.rfile.read(int(length))
        except TimeoutError:
            raise RefusedRequest(408, "the body did not arrive in time") from None
        if len(body) < int(length):
            raise RefusedRequest(400, f"the body ended after {len(body)} of {length} bytes")
        return body

    @property
    def _where(self) -> str:
        return self.path.partition("?")[0]

    def _wrong_address(self) -> RefusedRequest:
        return RefusedRequest(405 if self._where in _METHODS else 404, f"wanted POST {INFERENCE} or GET {HEALTH}")

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
    with CaptionServer(config, Inference(load_anytoany(config.model, device=choose_device(config.device)))) as server:
        host = f"[{config.host}]" if ":" in config.host else config.host
        _log.info("serving %s on http://%s:%d%s (Ctrl-C ends it)", config.model, host, server.server_port, INFERENCE)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            _log.info("stopped")


if __name__ == "__main__":
    run_main(ServeConfig, main, default_config="default/anytoany/serve.yaml", description=str(__doc__))
