"""The programs of examples/deploy do what their texts promise."""

from __future__ import annotations

import csv
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, small_detector, textured_images
from PIL import Image

from skpbas import Result
from skpbas.datasets import IMAGE_FORMATS
from skpbas.export import to_onnx
from skpbas.runtime import OnnxDetector

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

EXAMPLES = ROOT / "examples" / "deploy"


def example(name):
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


check_folder, serve, load_test = map(example, ("check_folder", "serve", "load_test"))


@pytest.fixture(scope="module")
def path(good_images, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "part.onnx"
    to_onnx(small_detector(max_epochs=2).set_params(backbone="embedded").fit(good_images), path)
    return path


@pytest.fixture(scope="module")
def detector(path):
    return OnnxDetector(path, n_threads=1)


@pytest.fixture(scope="module")
def images():
    """Images of two sizes that were not in fit; two have a defect."""
    first, second, third = textured_images(3, seed=5)
    second[20:34, 30:50] = 255
    wide = textured_images(1, 96, seed=6)[0, :70]
    wide[10:40, 20:50] = 0
    return [first, second, third, wide]


@pytest.fixture
def folder(images, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


# A folder -------------------------------------------------------------------------------------------------


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_of_a_folder_says_what_the_detector_says(path, detector, folder, tmp_path, capsys):
    table = tmp_path / "verdicts.csv"
    assert check_folder.main([str(path), str(folder), "--csv", str(table), "--threads", "1"]) == 1
    names = sorted(folder.iterdir())
    rows = rows_of(table)
    assert [row["file"] for row in rows] == list(map(str, names))
    assert [int(row["label"]) for row in rows] == detector.predict(names).tolist()
    assert [row["verdict"] for row in rows] == detector.verdicts(names).tolist()
    assert [float(row["score"]) for row in rows] == detector.score_samples(names).tolist()
    assert [float(row["margin"]) for row in rows] == detector.decision_function(names).tolist()
    assert [float(row["p_value"]) for row in rows] == detector.p_values(names).tolist()
    assert {row["error"] for row in rows} == {""}
    assert "2 anomalous" in capsys.readouterr().out
    assert sorted(folder.iterdir()) == names  # nothing was moved
    assert sorted(file.name for file in tmp_path.iterdir()) == ["parts", "verdicts.csv"]


@pytest.mark.parametrize("verb", ["copy", "move"])
def test_anomalous_images_are_copied_or_moved_under_free_names(verb, path, folder, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "1.png").write_text("of yesterday")
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    command = [str(path), str(folder), "--csv", str(tmp_path / "v.csv"), f"--{verb}", str(bad)]
    assert check_folder.main(command) == 1
    assert {file.name: file.read_bytes() for file in bad.iterdir()} == {
        "1.png": b"of yesterday",
        "1 (2).png": contents["1.png"],
        "3.png": contents["3.png"],
    }
    left = contents if verb == "copy" else {name: contents[name] for name in ("0.png", "2.png")}
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == left


def test_the_exit_status_says_whether_all_images_are_good_and_readable(path, folder, tmp_path, capsys):
    table = tmp_path / "v.csv"
    command = [str(path), str(folder), "--csv", str(table)]
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("left out")
    assert check_folder.main(command) == 3
    assert "left out: 1 other file\n" in capsys.readouterr().err
    assert [row["verdict"] for row in rows_of(table)].count("") == 1
    assert "broken.jpg" in rows_of(table)[-1]["error"]
    for name in ("broken.jpg", "1.png", "3.png"):
        (folder / name).unlink()
    assert check_folder.main(command) == 0


def test_without_an_image_or_a_detector_nothing_is_checked_and_no_table_written(path, folder, tmp_path, capsys):
    table = tmp_path / "v.csv"
    (tmp_path / "empty").mkdir()
    for arguments in (
        [path, tmp_path / "empty"],
        [path, tmp_path / "gone"],
        [tmp_path / "gone.onnx", folder],
        [path, folder, "--threads", "0"],
        [path, folder, "--move", folder],
    ):
        assert check_folder.main([*map(str, arguments), "--csv", str(table)]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not table.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names of files, and links for administrators only")
def test_images_of_all_formats_in_all_subfolders_are_checked_and_what_is_left_out_is_counted(
    path, folder, images, tmp_path, capsys
):
    (folder / "b" / "c").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for name in ("b/1.gif", "b/c/2.jfif", "b/c/10.ppm", ".cache/3.png"):
        Image.fromarray(images[0]).save(folder / name)
    (folder / "b" / "._1.gif").write_bytes(b"of macOS")
    (folder / "Thumbs.db").write_bytes(b"of Windows")
    (folder / "b" / "gone.png").symlink_to(tmp_path / "gone.png")
    (folder / "again").symlink_to(folder / "b", target_is_directory=True)
    assert check_folder.main([str(path), str(folder), "--csv", str(tmp_path / "v.csv")]) == 3
    rows = rows_of(tmp_path / "v.csv")
    expected = ["0.png", "1.png", "2.png", "3.png", "b/1.gif", "b/c/10.ppm", "b/c/2.jfif", "b/gone.png"]
    assert [row["file"] for row in rows] == [str(folder / name) for name in expected]
    assert [row["verdict"] == "" for row in rows] == [False] * 7 + [True]
    assert "left out: 2 other files, 2 folders (hidden, or links)\n" in capsys.readouterr().err


def test_the_formats_of_a_folder_are_those_of_the_library():
    assert set(check_folder.SUFFIXES) == {suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes}


def test_a_subfolder_that_cannot_be_listed_ends_the_check(folder, monkeypatch):
    listed = os.scandir

    def scandir(of):
        if Path(of).name == "locked":
            raise PermissionError(13, "Permission denied", str(of))
        return listed(of)

    (folder / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="locked"):
        check_folder.images_of(folder, None)


def test_copies_in_a_subfolder_are_not_checked_again(path, folder, tmp_path):
    command = [str(path), str(folder), "--csv", str(tmp_path / "v.csv"), "--copy", str(folder / "bad")]
    for _ in range(2):
        assert check_folder.main(command) == 1
        assert len(rows_of(tmp_path / "v.csv")) == 4


def test_a_table_that_cannot_be_written_is_an_error_before_any_image_is_scored(
    path, folder, tmp_path, capsys, monkeypatch
):
    def checked(*_):
        raise AssertionError("images were scored")

    monkeypatch.setattr(check_folder, "checked", checked)
    image, nowhere, directory = folder / "0.png", tmp_path / "nodir" / "x.csv", tmp_path / "x.csv"
    directory.mkdir()
    before = {file: file.read_bytes() for file in (image, path)}
    for table in (nowhere, directory, image, path):
        assert check_folder.main([str(path), str(folder), "--csv", str(table)]) == 2
        error = capsys.readouterr().err
        assert str(table) in error
        assert "unfinished" not in error
    assert {file: file.read_bytes() for file in before} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["parts", "x.csv"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names of files, and links for administrators only")
def test_names_of_files_are_no_formulas_for_a_spreadsheet(path, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("=cmd.png", "+1.png", "-1.png", "@a.png", "\ta.png", "a=1.png"):
        Image.fromarray(images[0]).save(Path(name))
    Path("=b.png").write_bytes(b"no image")
    assert check_folder.main([str(path), ".", "--csv", "v.csv"]) == 3
    rows = rows_of(tmp_path / "v.csv")
    assert {row["file"] for row in rows} == {
        "./=cmd.png",
        "./+1.png",
        "./-1.png",
        "./@a.png",
        "./\ta.png",
        "a=1.png",
        "./=b.png",
    }
    assert all(Path(row["file"]).is_file() for row in rows)
    assert not any(row["error"].startswith(("=", "+", "-", "@")) for row in rows)


def test_a_folder_is_checked_without_torch_and_scikit_learn(path, folder, tmp_path):
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'torchvision', 'sklearn', 'scipy', 'joblib'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-W", "error", "-c", code, EXAMPLES / "check_folder.py", path, folder]
    ran = subprocess.run([*command, "--csv", tmp_path / "v.csv"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert len(rows_of(tmp_path / "v.csv")) == 4


# The service ----------------------------------------------------------------------------------------------


@contextmanager
def running(detector, **settings):
    server = serve.Server(("127.0.0.1", 0), detector, **settings)
    server.RequestHandlerClass = type("Quiet", (serve.Handler,), {"log_message": lambda *_: None})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(server, body=None, method="POST", path="/predict", **headers):
    """Return the status, the content and the headers of an answer."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None, dict(answer.headers)
    finally:
        connection.close()


def test_the_service_answers_as_the_detector_does(detector, images):
    with running(detector) as server:
        answers = [asked(server, png(image)) for image in images]
        status, health, _ = asked(server, method="GET", path="/health")
    assert (status, health["status"], health["offset"]) == (200, "ok", detector.offset_)
    assert {status for status, _, _ in answers} == {200}
    contents = [content for _, content, _ in answers]
    assert [content["label"] for content in contents] == detector.predict(images).tolist()
    assert [content["verdict"] for content in contents] == detector.verdicts(images).tolist()
    assert [content["score"] for content in contents] == detector.score_samples(images).tolist()
    assert [content["margin"] for content in contents] == detector.decision_function(images).tolist()
    assert [content["p_value"] for content in contents] == detector.p_values(images).tolist()
    for content, regions in zip(contents, detector.find_regions(images), strict=True):
        expected = [] if content["verdict"] == "normal" else regions
        assert [tuple(region["bbox"]) for region in content["regions"]] == [region.bbox for region in expected]
        assert [region["area"] for region in content["regions"]] == [region.area for region in expected]
        assert [region["score"] for region in content["regions"]] == [region.score for region in expected]
    assert sum(len(content["regions"]) > 0 for content in contents) == 2


def test_a_connection_serves_several_images(detector, images):
    with running(detector) as server:
        connection = http.client.HTTPConnection(*server.server_address, timeout=60)
        scores = []
        for image in images[:2]:
            connection.request("POST", "/predict", png(image))
            scores.append(json.loads(connection.getresponse().read())["score"])
            own = connection.sock.getsockname()
        connection.request("GET", "/health")
        connection.getresponse().read()
        assert connection.sock.getsockname() == own
        connection.close()
    assert scores == detector.score_samples(images[:2]).tolist()


def chunks():
    yield b"no length"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "the body is empty"),
        (png(np.zeros((64, 64, 3), np.uint8))[:-30], 400, "damaged"),
        (png(np.zeros((3, 3, 3), np.uint8)), 400, "the image.* smaller than"),
        (b"text", 415, "not a file in the format PNG, JPEG"),
        (bytes(30_000), 413, "30000 bytes; the limit is 20000"),
        (bytes(500_000), 413, "the limit is 20000"),
    ],
)
def test_what_is_no_usable_image_is_refused_in_json(body, status, text, detector, images):
    with running(detector, max_bytes=20_000) as server:
        found, content, headers = asked(server, body)
        assert (found, list(content)) == (status, ["error"])
        assert headers["Content-Type"] == "application/json"
        assert re.search(text, content["error"])
        assert asked(server, png(images[0]))[0] == 200  # the service goes on


def test_requests_of_another_form_are_refused_in_json(detector):
    with running(detector) as server:
        for status, arguments in (
            (404, {"path": "/"}),
            (405, {"method": "GET"}),
            (405, {"method": "POST", "path": "/health"}),
            (501, {"method": "BREW"}),
            (411, {"body": chunks(), "Transfer_Encoding": "chunked"}),
            (400, {"Content_Length": "-1"}),
            (400, {"Content_Length": "1e3"}),
        ):
            found, content, headers = asked(server, **arguments)
            assert (found, list(content)) == (status, ["error"])
            if status == 405:
                assert headers["Allow"] == {"/predict": "POST", "/health": "GET"}[arguments.get("path", "/predict")]
        with socket.create_connection(server.server_address, timeout=60) as raw:
            raw.sendall(b"nonsense\r\n\r\n")
            assert b'{"error": "Bad request' in raw.makefile("rb").read()


def raw_connection(server, sent=b""):
    raw = socket.create_connection(server.server_address, timeout=60)
    raw.sendall(sent)
    return raw


@pytest.mark.parametrize(
    "lengths", [("3", "5"), ("5", "5"), ("000000000000000000000100",), ("9" * 5000,)], ids=lambda all: all[0][:30]
)
def test_a_length_that_two_programs_may_read_differently_is_refused(lengths, detector):
    fields = "".join(f"Content-Length: {length}\r\n" for length in lengths)
    with running(detector) as server:
        with raw_connection(server, f"POST /predict HTTP/1.1\r\n{fields}\r\nabcde".encode()) as raw:
            answer = raw.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"Content-Length is" in answer


def test_clients_that_send_nothing_take_no_place_of_others(detector, images):
    with running(detector, n_computing=1, n_waiting=2) as server, ExitStack() as idle:
        for _ in range(6):
            idle.enter_context(raw_connection(server, b"POST /predict HTTP/1.1\r\nContent-Length: 1000\r\n\r\n"))
        assert asked(server, method="GET", path="/health")[0] == 200  # the others were accepted before it
        assert asked(server, png(images[0]))[0] == 200


@pytest.mark.parametrize(
    ("beginning", "answer"),
    [
        (b"POST /predict HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 408 "),
        (b"POST /predict HTTP/1.1\r\nEndless: ", b""),
        (b"POST /nowhere HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 404 "),
    ],
    ids=["body", "head", "refused"],
)
def test_a_client_that_sends_a_byte_now_and_then_is_let_go(beginning, answer, detector, monkeypatch):
    monkeypatch.setattr(serve, "SECONDS_TO_ARRIVE", 0.2, raising=False)
    monkeypatch.setattr(serve, "SECONDS_TO_DRAIN", 0.2, raising=False)
    with running(detector) as server, raw_connection(server, beginning) as raw:
        while not threads_of_connections():
            threading.Event().wait(0.01)
        for _ in range(1000):
            if not threads_of_connections():
                break
            with suppress(ConnectionError):
                raw.send(b"x")
            threading.Event().wait(0.01)
        assert not threads_of_connections()
        raw.settimeout(1)
        received = b""
        with suppress(ConnectionError):
            received = raw.recv(4096)
        assert received.startswith(answer)


def threads_of_connections():
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def test_connections_are_bounded_and_others_are_told_to_return(detector):
    with running(detector, n_connections=2) as server, ExitStack() as idle:
        for _ in range(2):
            idle.enter_context(raw_connection(server))
        status, content, headers = asked(server, method="GET", path="/health")
        assert (status, content, headers["Retry-After"]) == (503, {"error": "too many connections"}, "1")
        idle.close()
        while asked(server, method="GET", path="/health")[0] != 200:  # their threads end in a moment
            threading.Event().wait(0.01)


def test_the_body_of_a_question_about_health_is_not_taken_for_another_request(detector):
    with (
        running(detector) as server,
        raw_connection(
            server, b"GET /health HTTP/1.1\r\nContent-Length: 24\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n"
        ) as raw,
    ):
        assert raw.makefile("rb").read().count(b"HTTP/1.1 ") == 1


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(detector):
    with (
        running(detector, max_bytes=1000) as server,
        socket.create_connection(server.server_address, timeout=60) as raw,
    ):
        raw.sendall(b"POST /predict HTTP/1.1\r\nContent-Length: 2000\r\nExpect: 100-continue\r\n\r\n")
        answer = raw.makefile("rb").readline()
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_an_error_of_the_program_is_answered_and_the_service_goes_on(images):
    class Faulty:
        def iter_results(self, images, maps):
            raise RuntimeError("a mistake")

    with running(Faulty()) as server:
        for _ in range(2):
            status, content, _ = asked(server, png(images[0]))
            assert (status, content) == (500, {"error": "the service failed: see its log"})


class Gate:
    """A detector whose computations wait until they are let through."""

    offset_ = 0.0

    def __init__(self):
        self.open, self.lock = threading.Event(), threading.Lock()
        self.entered = threading.Semaphore(0)
        self.now = self.most = 0

    def iter_results(self, images, maps):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.entered.release()
        assert self.open.wait(60)
        with self.lock:
            self.now -= 1
        yield Result(0, "images[0]", 1.0, 1, 0.5, verdict="normal")


def test_computations_and_waiting_images_are_bounded_and_others_are_told_to_return(images):
    gate, body = Gate(), png(images[0])
    with running(gate, n_computing=2, n_waiting=3) as server, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(asked, server, body) for _ in range(8)]
        refused = []
        while len(refused) < 3:
            refused = [answer for answer in answers if answer.done()]
            threading.Event().wait(0.01)
        assert {answer.result()[0] for answer in refused} == {503}
        assert refused[0].result()[2]["Retry-After"] == "1"
        gate.open.set()
        assert sorted(answer.result()[0] for answer in answers) == [200] * 5 + [503] * 3
    assert gate.most == 2


def test_a_service_that_stops_answers_what_it_has_begun_and_nothing_more(images):
    gate, body = Gate(), png(images[0])
    with running(gate) as server, ThreadPoolExecutor(2) as pool:
        later = http.client.HTTPConnection(*server.server_address, timeout=60)
        later.request("GET", "/health")
        later.getresponse().read()
        begun = pool.submit(asked, server, body)
        assert gate.entered.acquire(timeout=60)
        finished = pool.submit(server.finish)
        while not server.stopping:
            threading.Event().wait(0.01)
        later.request("POST", "/predict", body)
        assert later.getresponse().status == 503
        assert not finished.done()
        gate.open.set()
        assert finished.result(60) is True
        assert begun.result(60)[0] == 200
        later.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a program hears")
def test_the_program_serves_on_this_machine_until_it_is_told_to_stop(path, detector, images):
    command = [sys.executable, "-W", "error", str(EXAMPLES / "serve.py"), str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), process.stderr.read()
            connection = http.client.HTTPConnection(line.split("/")[2], timeout=60)
            connection.request("POST", "/predict", png(images[1]))
            content = json.loads(connection.getresponse().read())
            assert content["score"] == detector.score_samples(images[1:2])[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0  # the open connection does not keep it
            assert process.stdout.read() == "stopped\n"
            connection.close()
        finally:
            process.kill()


def test_the_service_does_not_start_without_a_detector(tmp_path, capsys):
    assert serve.main([str(tmp_path / "gone.onnx")]) == 2
    assert "gone.onnx: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        serve.main([str(tmp_path / "gone.onnx"), "--computing", "0"])


# The load test --------------------------------------------------------------------------------------------


def test_the_load_test_counts_verdicts_and_failures(detector, folder, capsys):
    with running(detector, n_computing=1) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/predict"
        assert load_test.main([url, str(folder), "--requests", "10", "--clients", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("10 verdicts in ")
        assert lines[0].endswith(" requests/s")
        assert [line.split()[0] for line in lines[1:]] == ["50", "90", "99", "100"]
        within = [float(line.split()[-2]) for line in lines[1:]]
        assert within == sorted(within)
        (folder / "notes.txt").write_text("no image")
        assert load_test.main([url, str(folder), "--requests", "10", "--clients", "2"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("8 verdicts in ")
        assert lines[1] == "2 without a verdict: 415 Unsupported Media Type"
    assert load_test.main([url, str(folder), "--requests", "2"]) == 1
    assert "0 verdicts" in capsys.readouterr().out


def test_the_load_test_asks_no_other_machine_and_has_limits(folder, capsys):
    for url in ("http://192.0.2.1:8000/predict", "http://example.com/predict", "https://127.0.0.1/predict", "parts"):
        assert load_test.main([url, str(folder)]) == 2
        assert "is not http://127.0.0.1" in capsys.readouterr().err
    for option in (["--requests", "0"], ["--clients", "1000"], ["--seconds", "601"]):
        with pytest.raises(SystemExit):
            load_test.main(["http://127.0.0.1:1/predict", str(folder), *option])


# C++ ------------------------------------------------------------------------------------------------------

INCLUDES = [f"-I{root}/include/onnxruntime{end}" for root in ("/usr", "/usr/local") for end in ("", "/core/session")]


@pytest.fixture(scope="module")
def score_program(tmp_path_factory):
    """The C++ program, compiled with the headers of the system and linked with the library of the Python package."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    headers = "#include <onnxruntime_cxx_api.h>\n#include <nlohmann/json.hpp>\n"
    probe = [compiler, "-std=c++17", "-E", "-x", "c++", *INCLUDES, "-"]
    if subprocess.run(probe, input=headers.encode(), capture_output=True, check=False).returncode:
        pytest.skip("the headers of ONNX Runtime or nlohmann/json are not installed")
    libraries = list(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("onnxruntime comes without a library to link with")
    folder = tmp_path_factory.mktemp("score")
    (folder / "libonnxruntime.so.1").symlink_to(libraries[0])  # the name that programs look for
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", *(option.replace("-I", "-isystem") for option in INCLUDES)]
    linked = [str(folder / "libonnxruntime.so.1"), f"-Wl,-rpath,{folder}", "-o", str(folder / "score")]
    command = [compiler, *options, str(EXAMPLES / "score.cpp"), *linked]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder / "score"


def test_the_cpp_program_scores_the_same_pixels_as_the_detector(score_program, path, detector, images, tmp_path):
    for image in images:
        Image.fromarray(image).save(tmp_path / "part.ppm")
        ran = subprocess.run([score_program, path, tmp_path / "part.ppm"], capture_output=True, text=True, check=False)
        said = dict(line.split(" ") for line in ran.stdout.splitlines())
        (verdict,) = detector.verdicts([image])
        assert (said["verdict"], ran.returncode) == (verdict, int(verdict == "anomalous"))
        np.testing.assert_allclose(float(said["score"]), detector.score_samples([image])[0], rtol=1e-5)
        np.testing.assert_allclose(float(said["margin"]), detector.decision_function([image])[0], rtol=1e-4)
        assert float(said["p_value"]) == detector.p_values([image])[0]
        assert abs(int(said["anomalous_pixels"]) - detector.anomaly_mask([image]).sum()) <= 2


def test_the_cpp_program_refuses_what_is_no_detector_or_image(score_program, path, images, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "part.ppm")
    (tmp_path / "cut.ppm").write_bytes((tmp_path / "part.ppm").read_bytes()[:-1])
    for arguments, text in (
        ([path, tmp_path / "cut.ppm"], "cut.ppm is cut off"),
        ([path, path], "is not a binary PPM"),
        ([tmp_path / "part.ppm", tmp_path / "part.ppm"], "error: "),
        ([path], "usage: "),
    ):
        ran = subprocess.run([score_program, *arguments], capture_output=True, text=True, check=False)
        assert ran.returncode == 2
        assert text in ran.stderr
