"""The HTTP contract: vectors in, texts out; everything else a clear refusal."""

import http.client
import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from model_toys import WIDTH, toy_model
from PIL import Image

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.answers.inference import Inference
from egom2p.anytoany.perception.media_files import features_of_vectors
from egom2p.anytoany.perception.source import TimmFramesConfig, VectorsConfig
from egom2p.anytoany.serve import FILE, INFERENCE, CaptionServer, ServeConfig
from egom2p.data.clips.video_files import write_video

CONFIG = ServeConfig(
    model="-", prompt="{video} what?", port=0, max_batch=3, timeout_s=1.0, answer=AnswerConfig(max_new_tokens=5)
)


@pytest.fixture(scope="module")
def inference(tmp_path_factory):
    return Inference(toy_model(tmp_path_factory.mktemp("tokenizer"), noise=0.3))


@pytest.fixture(scope="module")
def server(inference):
    with CaptionServer(CONFIG, inference) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def request(server, body=None, *, path=INFERENCE, method="POST", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content


def vectors(count):
    return np.random.default_rng(0).normal(size=(count, WIDTH)).astype(np.float32)


def test_texts_are_those_of_the_model(server, inference):
    shown = vectors(3)
    status, content = request(server, json.dumps({"embedding": shown.flatten().tolist()}))
    asked = [inference.question(CONFIG.prompt, [("video", features_of_vectors(vector))]) for vector in shown]
    assert status == 200 and content == {"texts": [said.text for said in inference.answer(asked, CONFIG.answer)]}
    assert len(set(content["texts"])) > 1
    alone = request(server, json.dumps({"embedding": shown[1].tolist()}))[1]["texts"]
    assert alone == content["texts"][1:2]
    for path in ("/", "/api/v1/health", "/api/v1/health?at=now"):
        status, facts = request(server, method="GET", path=path)
        wanted = {"status": "ok", "model": "-", "prompt": CONFIG.prompt, "width": WIDTH, "max_batch": 3}
        assert status == 200 and facts == {**wanted, "max_file_bytes": 0, "inference": INFERENCE}


def test_requests_at_the_same_time_get_their_own_answers(server):
    shown = vectors(8)
    bodies = [json.dumps({"embedding": vector.tolist()}) for vector in shown]
    alone = [request(server, body)[1]["texts"] for body in bodies]
    assert len({text for (text,) in alone}) > 2
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: request(server, body)[1]["texts"], bodies))
    assert together == alone


@pytest.mark.parametrize(
    "body, status, message",
    [
        ("{", 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        ("[" * 1500, 400, "not valid JSON"),
        ("[1]", 400, "embedding"),
        ('{"embeddings": []}', 400, "embedding"),
        ('{"embedding": []}', 400, "multiple of 10"),
        ('{"embedding": [1, 2, 3]}', 400, "multiple of 10"),
        (json.dumps({"embedding": [[0.0] * 10]}), 400, "flat list"),
        (json.dumps({"embedding": [True] * 10}), 400, "flat list"),
        (json.dumps({"embedding": ["0"] * 10}), 400, "flat list"),
        ('{"embedding": [NaN,1,1,1,1,1,1,1,1,1]}', 400, "not finite"),
        ('{"embedding": [1e300,1,1,1,1,1,1,1,1,1]}', 400, "not finite"),
        (json.dumps({"embedding": [0] * 40}), 413, "4 vectors"),
        (json.dumps({"embedding": [10**400] + [1] * 9}), 400, "not finite"),
        (" " * 3000, 413, "at most"),
        (" " * 5_000_000, 413, "at most"),  # more than the socket holds: the client still sees the answer
    ],
)
def test_bad_bodies_are_refused_and_the_server_lives(server, body, status, message):
    found, content = request(server, body)
    assert found == status and message in content["error"]
    assert request(server, json.dumps({"embedding": [0.5] * WIDTH}))[0] == 200


def whole_answer(connection):
    """What comes until the server closes: head and body may come in parts."""
    answer = b""
    with suppress(ConnectionError):
        while got := connection.recv(65536):
            answer += got
    return answer


def test_bad_requests_are_refused(server):
    assert request(server, "{}", path="/api/v2/inference")[0] == 404
    assert request(server, method="GET")[0] == 405
    assert request(server, "{}", path="/api/v1/health")[0] == 405
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        status, content = request(server, "{}", method=method)
        assert status == 405 and method in content["error"]
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as odd:
        odd.sendall(b"nonsense\r\n\r\n")
        assert b'{"error": ' in whole_answer(odd)
    for headers, status in (({"Content-Length": "-5"}, 411), ({"Content-Length": "x"}, 411)):
        assert request(server, headers=headers)[0] == status
    # Promised, never sent: the server waits no longer than it says, and serves others meanwhile.
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as lazy:
        lazy.sendall(f"POST {INFERENCE} HTTP/1.1\r\nContent-Length: 100\r\n\r\n".encode())
        assert request(server, json.dumps({"embedding": [0.5] * WIDTH}))[0] == 200
        assert b"408" in whole_answer(lazy)


def test_a_failure_of_the_model_is_an_answer_too(server, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(server.inference, "answer", broken)
    status, content = request(server, json.dumps({"embedding": [0.5] * WIDTH}))
    assert status == 500 and "out of memory" not in content["error"]


def test_what_the_model_perceives_must_be_of_the_kind(tmp_path):
    two = tuple(VectorsConfig(width=4, kinds=(kind,)) for kind in ("audio", "image"))
    with pytest.raises(ValueError, match="media of kind video need exactly one perception source, found none"):
        CaptionServer(CONFIG, Inference(toy_model(tmp_path, perception=two)))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"host": "0.0.0.0"}, "127.0.0.1"),
        ({"prompt": "say something"}, "needs {video} once"),
        ({"prompt": "{video} and {video}"}, "needs {video} once"),
        ({"prompt": "{image}"}, "needs {video} once"),
        ({"prompt": "{vidoe}"}, "did you mean {video}"),
        ({"port": 99999}, "port must be"),
        ({"max_batch": 0}, "max_batch"),
    ],
)
def test_settings_that_cannot_work_are_found_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        ServeConfig(model="-", **settings)


def test_a_taken_port_is_named(server, inference):
    with pytest.raises(ValueError, match=f"port {server.server_port} of 127.0.0.1: .* port=0"):
        CaptionServer(replace(CONFIG, port=server.server_port), inference)


def raw(server, *parts, pause_s=0.0):
    """Status of what is answered to bytes sent in parts; None for a connection that is closed without an answer."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            answer = b""
            while got := connection.recv(65536):
                answer += got
        except ConnectionError:
            return None
    return int(answer.split()[1]) if answer else None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "null"}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "https://localhost"}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "LOCALHOST:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
    ],
)
def test_a_web_page_cannot_use_the_model(server, headers, status):
    """Neither by a simple request of another site nor by a name of its own that leads to this machine."""
    headers = {name: text.format(port=server.server_port) for name, text in headers.items()}
    body = json.dumps({"embedding": vectors(1).flatten().tolist()})
    assert request(server, body, headers=headers)[0] == status
    assert request(server, method="GET", path="/", headers=headers)[0] == status


def test_a_request_names_one_host(server):
    host = b"Host: 127.0.0.1:%d\r\n" % server.server_port
    assert raw(server, b"GET / HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n") == 200
    assert raw(server, b"GET / HTTP/1.1\r\n" + host * 2 + b"\r\n") == 403
    assert raw(server, b"GET / HTTP/1.0\r\n\r\n") == 200  # every browser names one


def test_a_request_that_trickles_in_ends_at_its_deadline(server):
    start_s = time.monotonic()
    assert raw(server, *[b"G"] * 40, pause_s=0.1) is None
    assert time.monotonic() - start_s < 5
    host = b"Host: 127.0.0.1:%d\r\n" % server.server_port
    head = f"POST {INFERENCE} HTTP/1.1\r\n".encode() + host + b"Content-Length: 1000\r\n\r\n"
    start_s = time.monotonic()
    assert raw(server, head, *[b" "] * 30, pause_s=0.1) in (408, None)
    assert time.monotonic() - start_s < 6


def test_two_hundred_at_once_are_all_answered(server):
    def status(_):
        return request(server, method="GET", path="/")[0]

    with ThreadPoolExecutor(200) as pool:
        assert set(pool.map(status, range(200))) == {200}


def test_connections_are_bounded_and_free_again(inference):
    with CaptionServer(replace(CONFIG, max_connections=2), inference) as few:
        threading.Thread(target=few.serve_forever, daemon=True).start()
        open_ones = [socket.create_connection(("127.0.0.1", few.server_port)) for _ in range(2)]
        time.sleep(0.2)
        assert raw(few) == 503
        for connection in open_ones:
            connection.close()
        time.sleep(0.2)
        assert request(few, method="GET", path="/")[0] == 200
        few.shutdown()


def test_a_client_that_hangs_up_leaves_no_traceback(server, caplog, capfd):
    body = json.dumps({"embedding": vectors(3).flatten().tolist()}).encode()
    host = b"Host: 127.0.0.1:%d\r\n" % server.server_port
    head = f"POST {INFERENCE} HTTP/1.1\r\n".encode() + host + b"Content-Length: %d\r\n\r\n" % len(body)
    for sent in (b"", b"GET", head, head + body[:9], head + body, b"BAD \x1b[31m\r\n\r\n" * 9):
        connection = socket.create_connection(("127.0.0.1", server.server_port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        connection.sendall(sent)
        connection.close()
    assert request(server, body)[0] == 200
    assert "Traceback" not in caplog.text + capfd.readouterr().err and "\x1b" not in caplog.text


@pytest.mark.parametrize("length", ["9" * 5000, "1" * 16, "99999999"])
def test_a_length_with_thousands_of_digits_is_too_large(server, length):
    assert request(server, b"{}", headers={"Content-Length": length})[0] == 413


@pytest.fixture(scope="module")
def of_files(tmp_path_factory):
    """A server whose model sees pictures and videos through a tiny image tower."""
    folder = tmp_path_factory.mktemp("files")
    tower = TimmFramesConfig(tower="test_vit", tower_weights="random", image_size=32, num_frames=4, clip_s=1.0)
    model = toy_model(folder, perception=(tower,), noise=0.3)
    config = replace(CONFIG, folder=str(folder / "uploads"), max_file_mb=0.2, max_pixels=64 * 64, timeout_s=5.0)
    frames = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    write_video(folder / "walk.mp4", frames, 10)
    Image.fromarray(frames[0]).save(folder / "photo.png")
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(folder / "large.png")
    write_video(folder / "short.mp4", frames[:2], 10)
    write_video(folder / "large.mp4", np.zeros((20, 100, 100, 3), np.uint8), 10)
    pictures = [Image.fromarray(np.full((64, 64, 3), value, np.uint8)) for value in range(20)]
    pictures[0].save(folder / "long.gif", save_all=True, append_images=pictures[1:])
    with CaptionServer(config, Inference(model)) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running, folder
        running.shutdown()


def upload(server, body, **more):
    return request(server, body, path=FILE, **more)


@pytest.mark.parametrize("name", ["walk.mp4", "photo.png"])
def test_an_uploaded_file_is_answered_as_on_the_command_line(of_files, name):
    server, folder = of_files
    status, content = upload(server, (folder / name).read_bytes())
    (clip, *_) = server.inference.perceive_file("video", str(folder / name))
    (wanted,) = server.inference.answer(
        [server.inference.question(CONFIG.prompt, [("video", clip.features)])], CONFIG.answer
    )
    assert status == 200 and content["texts"] == [wanted.text] and "training data" in content["note"]
    assert list((folder / "uploads").iterdir()) == [], "nothing of it stays"


def test_uploads_that_are_no_video_or_too_large_are_refused(of_files):
    server, folder = of_files
    whole = (folder / "walk.mp4").read_bytes()
    playlist = b"ffconcat version 1.0\nfile /etc/hostname\n"
    hls = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n"
    inside = whole[:4] + b"ftyp" + b"isom" + hls
    for body, status, message in (
        (b"", 415, "no video or picture"),
        (b"hello", 415, "no video or picture"),
        (playlist, 415, "no video or picture"),
        (hls, 415, "no video or picture"),
        (inside, 400, "the file"),
        (whole[: len(whole) // 2], 400, "the file"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 50, 400, ""),
        ((folder / "short.mp4").read_bytes(), 400, "the file"),
        ((folder / "large.png").read_bytes(), 400, "frames of 100 x 100"),
        ((folder / "large.mp4").read_bytes(), 400, "frames of 100 x 100"),
        ((folder / "long.gif").read_bytes(), 400, "20 frames of 64 x 64"),
        (whole + b"0" * 300_000, 413, "at most 200000"),
    ):
        found, content = upload(server, body)
        assert (found, message in content["error"]) == (status, True), (body[:20], content)
        assert str(folder) not in content["error"], "no path of this machine"
    assert upload(server, whole, method="PUT")[0] == 405
    assert request(server, json.dumps({"embedding": [0.5]}))[0] == 404, "it perceives no vectors"
    assert upload(server, whole)[0] == 200 and list((folder / "uploads").iterdir()) == []


def test_a_model_of_vectors_takes_no_files_and_uploads_are_bounded(server, of_files):
    status, content = upload(server, b"x")
    assert status == 404 and f"POST {INFERENCE}" in content["error"]
    running, folder = of_files
    held = [running.uploads.acquire(blocking=False) for _ in range(4)]
    try:
        assert all(held) and upload(running, (folder / "photo.png").read_bytes())[0] == 503
    finally:
        for _ in held:
            running.uploads.release()
    with socket.create_connection(("127.0.0.1", running.server_port), timeout=10) as half:
        half.sendall(f"POST {FILE} HTTP/1.1\r\nContent-Length: 1000\r\n\r\nhalf".encode())
        half.shutdown(socket.SHUT_WR)
        assert b"996 bytes early" in whole_answer(half)
    assert list((folder / "uploads").iterdir()) == []


def test_a_request_does_not_wait_for_the_model_for_ever(inference):
    with CaptionServer(replace(CONFIG, wait_s=0.2), inference) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        with running._model_lock:  # another request that takes long
            began_s = time.monotonic()
            status, content = request(running, json.dumps({"embedding": [0.5] * WIDTH}))
            assert status == 503 and "busy" in content["error"] and time.monotonic() - began_s < 5
        assert request(running, json.dumps({"embedding": [0.5] * WIDTH}))[0] == 200
        running.shutdown()
