"""A service on this machine that inspects images sent to it over HTTP.

    python serve.py part.onnx --port 8000
    curl --data-binary @part_1.png http://127.0.0.1:8000/predict
    curl http://127.0.0.1:8000/health

``POST /predict`` takes the bytes of an image file and answers with JSON:
"label" (1: normal, -1: anomalous), "verdict" ("normal", "unsure" or
"anomalous"), "score", "margin" (negative: anomalous), "p_value", and "regions"
of an image that is not normal, the most anomalous first, with "bbox" (top,
left, height, width), "area", "centroid" (row, column) and "score", in pixels
of the image. Any other status than 200 comes with a JSON object with "error".

It listens on 127.0.0.1: only programs on this machine reach it. There is no
password and no encryption, so put it behind a web server that has both before
other machines may. It needs numpy, Pillow, skpbas and ONNX Runtime or
OpenVINO: no torch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import MappingProxyType
from typing import Any

from PIL import Image, UnidentifiedImageError

from skpbas import __version__
from skpbas.errors import InvalidImageError, SkpbasError
from skpbas.runtime import OnnxDetector

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SECONDS_OF_SILENCE = 20.0  # of a client, before its connection is closed
SECONDS_TO_ARRIVE = 30.0  # of a request, from its first byte to its last
SECONDS_TO_DRAIN = 5.0  # of what a client still sends after a refusal
SECONDS_TO_FINISH = 30.0  # of requests in progress, on shutdown
METHODS = {"/predict": "POST", "/health": "GET"}
NO_CONNECTION = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Content-Length: 34\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    b'{"error": "too many connections"}\n'
)


class Refused(Exception):
    """A request that is answered with an error status."""

    def __init__(
        self, status: HTTPStatus, message: str, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class Arriving(io.RawIOBase):
    """What a client sends, each request within a time that is bounded.

    A limit on each read alone would let a client that sends a byte now and
    then keep its thread for ever.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._end = connection, 0.0
        self.await_request()

    def await_request(self) -> None:
        """Let the time of a request start with the next byte."""
        self._end = float("inf")

    def end_within(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long to arrive")
        self._connection.settimeout(min(left, SECONDS_OF_SILENCE))
        try:
            n_read = self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(SECONDS_OF_SILENCE)  # of the answer
        if self._end == float("inf"):
            self.end_within(SECONDS_TO_ARRIVE)
        return n_read


class Server(ThreadingHTTPServer):
    """One detector, and bounds on how many requests use it at a time.

    Each of ``n_connections`` has a thread, which reads an image before it asks
    for a place: clients that are slow or idle take none. ``n_computing``
    images are computed and ``n_waiting`` more wait; the clients of others, and
    of more connections, are told to come back later.
    """

    daemon_threads = True  # idle connections do not keep the program alive
    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # there, two could share a port

    def __init__(
        self,
        address: tuple[str, int],
        detector: OnnxDetector,
        *,
        n_computing: int = 2,
        n_waiting: int = 16,
        n_connections: int = 64,
        max_bytes: int = 2**25,
    ) -> None:
        super().__init__(address, Handler)
        self.detector, self.max_bytes = detector, max_bytes
        self.n_admitted = n_computing + n_waiting
        self.admitted = threading.BoundedSemaphore(self.n_admitted)
        self.computing = threading.BoundedSemaphore(n_computing)
        self.connections = threading.BoundedSemaphore(n_connections)
        self.stopping = False

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks for the host's name
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or close it if there are many."""
        if not self.connections.acquire(blocking=False):
            try:
                request.setblocking(False)  # the next one is waiting
                request.send(NO_CONNECTION)
            except OSError:
                pass
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread that would release it
            self.connections.release()
            raise

    def process_request_thread(self, request: Any, address: Any) -> None:
        try:
            super().process_request_thread(request, address)
        finally:
            self.connections.release()

    def finish(self) -> bool:
        """Wait for requests in progress; return whether all are answered.

        Call it after ``shutdown``. Requests that come now are refused.
        """
        self.stopping = True
        end = time.monotonic() + SECONDS_TO_FINISH
        return all(
            self.admitted.acquire(timeout=max(0.0, end - time.monotonic()))
            for _ in range(self.n_admitted)
        )


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"  # connections are kept for more requests
    server_version, sys_version = f"skpbas/{__version__}", ""
    timeout = SECONDS_OF_SILENCE
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.arriving = Arriving(self.connection)
        self.rfile = io.BufferedReader(self.arriving)

    def handle_one_request(self) -> None:
        self.arriving.await_request()
        super().handle_one_request()

    def do_GET(self) -> None:
        self._answer(self._health)

    def do_POST(self) -> None:
        with ExitStack() as place:  # which is kept until the answer is sent
            self._answer(lambda: self._predict(place))

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def handle_expect_100(self) -> bool:
        """Refuse a body that is too large before it is sent."""
        try:
            self._check_request()
        except Refused as refused:
            self._refuse(refused)
            return False
        return super().handle_expect_100()

    def send_error(
        self, code: int, message: str | None = None, explain: Any = None
    ) -> None:
        """Send the errors of the base class, too, as JSON."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._send(status, {"error": message or status.phrase})

    def _answer(self, compute: Callable[[], dict[str, Any]]) -> None:
        try:
            self._check_request()
            status, content = HTTPStatus.OK, compute()
        except Refused as refused:
            self._refuse(refused)
            return
        except (TimeoutError, ConnectionError):
            self.close_connection = True  # nobody is there
            return
        except Exception as error:  # noqa: BLE001 - the service goes on
            self.log_error("%s: %s", type(error).__name__, error)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            content = {"error": "the service failed: see its log"}
        self._send(status, content)

    def _check_request(self) -> None:
        """Check all that is known before the body is read."""
        path = self.path.partition("?")[0]
        expected = METHODS.get(path)
        if expected is None:
            paths = " and ".join(METHODS)
            raise Refused(HTTPStatus.NOT_FOUND, f"there are {paths}")
        if self.command != expected:
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"use {expected} {path}",
                allow=expected,
            )
        if expected == "POST":
            length = self._length()
            if length == 0:
                raise Refused(HTTPStatus.BAD_REQUEST, "the body is empty")
            if length > self.server.max_bytes:
                raise Refused(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the body has {length} bytes; the limit is "
                    f"{self.server.max_bytes}",
                )
        elif "Content-Length" in self.headers or (
            "Transfer-Encoding" in self.headers
        ):
            self.close_connection = True  # its body is no further request

    def _length(self) -> int:
        texts = self.headers.get_all("Content-Length", [])
        if not texts or "Transfer-Encoding" in self.headers:
            raise Refused(
                HTTPStatus.LENGTH_REQUIRED, "send it with a Content-Length"
            )
        text = ", ".join(texts)  # a server in front may take any of several
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise Refused(
                HTTPStatus.BAD_REQUEST, f"Content-Length is {text[:40]!r}"
            )
        return int(text)

    def _health(self) -> dict[str, Any]:
        metadata = self.server.detector.metadata_
        return {
            "status": "stopping" if self.server.stopping else "ok",
            "provider": self.server.detector.provider,
            "exported_with": metadata["versions"],
            "offset": self.server.detector.offset_,
        }

    def _predict(self, place: ExitStack) -> dict[str, Any]:
        self._refuse_if_stopping()
        body = self._body()
        self._refuse_if_stopping()
        if not self.server.admitted.acquire(blocking=False):
            raise unavailable("it is busy")
        place.callback(self.server.admitted.release)
        with self.server.computing:
            return inspected(self.server.detector, body)

    def _refuse_if_stopping(self) -> None:
        if self.server.stopping:
            raise unavailable("it is stopping")

    def _body(self) -> bytes:
        length = self._length()
        try:
            body = self.rfile.read(length)
        except TimeoutError as error:
            raise Refused(
                HTTPStatus.REQUEST_TIMEOUT, "the body took too long to arrive"
            ) from error
        if len(body) < length:
            raise ConnectionError("the client left")
        return body

    def _refuse(self, refused: Refused) -> None:
        """Send an error; a body that was not read ends the connection."""
        self.close_connection = True
        content = {"error": str(refused)}
        self._send(refused.status, content, refused.headers)
        try:  # a client that is still sending would miss the answer
            self.connection.shutdown(socket.SHUT_WR)
            self.arriving.end_within(SECONDS_TO_DRAIN)
            left = 4 * self.server.max_bytes
            while left > 0 and (read := self.rfile.read1(2**16)):
                left -= len(read)
        except OSError:
            pass

    def _send(
        self,
        status: HTTPStatus,
        content: dict[str, Any],
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        body = json.dumps(content, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-").title(), value)
        if self.close_connection:
            self.send_header("Connection", "close")
        try:
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except OSError:  # the client left
            self.close_connection = True


def unavailable(message: str) -> Refused:
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after="1")


def inspected(detector: OnnxDetector, body: bytes) -> dict[str, Any]:
    """Return the answer for the bytes of an image file."""
    image = decoded(body)
    try:
        (result,) = detector.iter_results([image], maps=False)
        regions = []
        if result.verdict != "normal":  # which computes once more
            (regions,) = detector.find_regions([image])
    except InvalidImageError as error:
        text = str(error).replace("images[0]", "the image")
        raise Refused(HTTPStatus.BAD_REQUEST, text) from error
    assert result.score is not None
    return {
        "label": result.label,
        "verdict": result.verdict,
        "score": result.score,
        "margin": result.score - detector.offset_,
        "p_value": result.p_value,
        "regions": [
            {
                "bbox": region.bbox,
                "area": region.area,
                "centroid": region.centroid,
                "score": region.score,
            }
            for region in regions
        ],
    }


def decoded(body: bytes) -> Image.Image:
    """Return the image in the bytes of a file."""
    try:
        image = Image.open(io.BytesIO(body), formats=FORMATS)
        image.load()
    except UnidentifiedImageError:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the body is not a file in the format {', '.join(FORMATS)}",
        ) from None
    except Image.DecompressionBombError as error:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)
        ) from None
    except Exception as error:  # decoders raise errors of many types
        raise Refused(
            HTTPStatus.BAD_REQUEST, f"the image is damaged: {error}"
        ) from error
    return image


def main(arguments: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(arguments)
    try:
        detector = OnnxDetector(args.detector, n_threads=args.threads)
        server = Server(
            (args.host, args.port),
            detector,
            n_computing=args.computing,
            n_waiting=args.waiting,
            n_connections=args.connections,
            max_bytes=args.max_bytes,
        )
    except (SkpbasError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    warnings.simplefilter("always")  # each image unlike those of fit is logged
    stop = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the last on Windows
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address[:2]
    print(f"http://{host}:{port}/predict", flush=True)
    while not stop.wait(0.5):  # on Windows, an endless wait hears no signal
        pass
    server.shutdown()
    complete = server.finish()
    server.server_close()
    print("stopped" if complete else "stopped with requests unanswered")
    return 0 if complete else 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Inspect images over HTTP.")
    parser.add_argument("detector", help="file of to_onnx")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any")
    for name, default, what in (
        ("threads", 1, "of one computation"),
        ("computing", 2, "images computed at a time"),
        ("waiting", 16, "further images that wait for it"),
        ("connections", 64, "at a time, each of which may send an image"),
        ("max-bytes", 2**25, "of an image file"),
    ):
        parser.add_argument(
            f"--{name}",
            type=at_least_one,
            default=default,
            metavar="N",
            help=f"{what} (default: {default})",
        )
    return parser


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
