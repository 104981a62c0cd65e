"""What all commands share: help, errors of one line, warnings, interrupts and pipes."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from skpbas.__main__ import COMMANDS, main, make_parser
from skpbas._cli import console, evaluate, fit, info, options, predict

PARSERS = make_parser()._subparsers._group_actions[0].choices


def test_each_module_of_a_command_adds_one_parser():
    assert len(PARSERS) == len(COMMANDS)
    assert [parser.get_default("run") for parser in PARSERS.values()] == [module.run for module in COMMANDS]


@pytest.mark.parametrize("command", PARSERS)
def test_each_command_teaches_by_examples_that_are_valid(command):
    lines = PARSERS[command].epilog.splitlines()
    assert max(map(len, lines)) <= 80
    examples = [line.split("skpbas ", 1)[1].split(" | ")[0] for line in lines if "  skpbas " in line]
    assert any(example.split()[0] == command for example in examples)
    for example in examples:
        make_parser().parse_args(shlex.split(example))


def failing(error: BaseException):
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a\nb   c"), "skpbas info: error: a b   c"),
        (ValueError("X[3] (a/b.png) is 2 x 2"), "skpbas info: error: a/b.png is 2 x 2"),
        (OSError("no disk"), "skpbas info: error: no disk"),
        (RuntimeError("odd"), "skpbas info: error: RuntimeError: odd"),
        (MemoryError(), "skpbas info: error: MemoryError: MemoryError"),
    ],
)
def test_an_error_is_one_line_and_with_v_a_traceback_too(error, message, monkeypatch, capsys):
    monkeypatch.setattr(info, "run", failing(error))
    assert main(["info", "part.skpbas"]) == 2
    assert capsys.readouterr().err.splitlines() == [message]
    assert main(["info", "part.skpbas", "-v"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == message


def test_an_interrupt_ends_with_the_code_of_the_signal(monkeypatch, capsys):
    monkeypatch.setattr(info, "run", failing(KeyboardInterrupt()))
    assert main(["info", "part.skpbas"]) == 130
    assert capsys.readouterr().err == "skpbas info: interrupted\n"


def test_warnings_are_one_line_each_and_none_is_repeated(monkeypatch, capsys):
    def run(_: argparse.Namespace) -> int:
        for text in ("a\n  b", "c", "a b"):
            warnings.warn(text, UserWarning, stacklevel=1)
        warnings.warn("of developers", DeprecationWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(info, "run", run)
    assert main(["info", "part.skpbas"]) == 0
    assert capsys.readouterr().err == "warning: a b\nwarning: c\n"


def test_a_warning_is_forgotten_only_when_many_others_came_after_it(monkeypatch, capsys):
    monkeypatch.setattr(console, "_MOST_WARNINGS", 2)
    with console.warnings_as_lines():
        for text in "aababcbca":
            warnings.warn(text, UserWarning, stacklevel=1)
    assert capsys.readouterr().err.split("\n") == [f"warning: {text}" for text in "abca"] + [""]


@pytest.mark.parametrize(
    ("arguments", "package"),
    [(["evaluate", "a.onnx", "b"], "sklearn"), (["predict", "a.skpbas", "b"], "torch"), (["fit", "--help"], "torch")],
)
def test_without_a_package_of_the_full_installation_one_line_says_how_to_install_it(
    arguments, package, monkeypatch, capsys
):
    def missing(*_):
        raise ModuleNotFoundError(f"No module named {package + '.x'!r}", name=f"{package}.x")

    monkeypatch.setattr(options, "add_parameters", missing)
    monkeypatch.setattr(fit, "add_parameters", missing)
    for module in (evaluate, predict):
        monkeypatch.setattr(module, "run", missing)
    assert main(arguments) == 2
    said = f"this needs a full installation, and {package} is missing: pip install skpbas"
    assert capsys.readouterr().err == f"skpbas {arguments[0]}: error: {said}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("picture_size=10: expected more", "--picture-size 10: expected more"),
        ("device='a: b' is odd", "device='a: b' is odd"),
        ("other=3: expected more", "other=3: expected more"),
        (
            "The 'image_size' parameter of PBASDetector must be an int in the range [1, inf) or an array-like. "
            "Got 0 instead.",
            "--image-size 0: expected a whole number from 1 or two with an x between",
        ),
    ],
)
def test_an_error_about_a_parameter_is_about_the_option_of_that_name(text, said):
    assert console.in_options(text, ("picture_size", "image_size", "device")) == said


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["--unsure_rate=0.1"], {"unsure_rate": 0.1}),
        (["--unsure_rate", "0.1"], {"unsure_rate": 0.1}),
        (["--title=a_b"], {"title": "a_b"}),
    ],
)
def test_only_options_may_be_written_with_underscores(given, parsed):
    assert vars(make_parser().parse_args(["report", "d", "f", *given])).items() >= parsed.items()


@pytest.mark.parametrize(
    "given", [["d", "a", "b", "--csv", "t"], ["--csv", "t", "d", "a", "b"], ["d", "--csv", "t", "a", "b"]]
)
def test_options_may_stand_before_behind_and_between_detector_and_images(given):
    arguments = make_parser().parse_args(["predict", *given])
    assert (str(arguments.detector), arguments.what, str(arguments.csv)) == ("d", ["a", "b"], "t")


def test_wrong_arguments_are_wrong_use(capsys):
    with pytest.raises(SystemExit) as end:
        main(["predict"])
    assert end.value.code == 2
    assert "DETECTOR" in capsys.readouterr().err


def test_a_closed_pipe_ends_a_command_without_a_traceback(saved, parts):
    command = [sys.executable, "-m", "skpbas", "predict", str(saved), str(parts / "test"), "--json", "-"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert ended.returncode == 141
    assert ended.stderr == ""


def test_a_file_is_complete_or_not_there(tmp_path):
    target = tmp_path / "a.csv"
    with pytest.raises(RuntimeError), console.data_output(target, "--csv") as file:  # noqa: PT012 - ends amid writing
        file.write("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with console.data_output(target, "--csv") as file:
        file.write("ä\n")
        assert not target.exists()
    assert target.read_bytes() == "ä\n".encode()
    assert list(Path(tmp_path).iterdir()) == [target]


def test_progress_is_shown_only_at_a_terminal(capsys):
    assert list(console.progress(range(3), "counting", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_and_a_link_stays_one(tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with console.data_output(pipe, "--csv") as file:
        file.write("row")
    assert os.read(reading, 10) == b"row"
    os.close(reading)
    assert pipe.is_fifo()
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    with console.data_output(link, "--csv") as file:
        file.write("new")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"
