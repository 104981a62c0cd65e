"""Hot folders: which images are complete, and each once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_helpers import save
from helpers import textured_images

from skpbas._cli import watching
from skpbas._cli.console import UsageError
from skpbas._cli.watching import WatchedFolder


class Time:
    """A clock that stands still but for the pauses between polls, before each of which something may happen."""

    def __init__(self, *events) -> None:
        self.now, self.events = 0.0, list(events)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.events:
            event = self.events.pop(0)
            event()


def watched(folder: Path, time: Time, **options) -> list[str]:
    options = {"interval": 1.0, "idle_seconds": 20.0, **options}
    found = WatchedFolder(folder, sleep=time.sleep, clock=lambda: time.now, **options)
    return [str(image.below) for image in found]


def nothing() -> None:
    pass


@pytest.fixture
def image() -> bytes:
    return textured_images(1, 32)[0]


def changed_at(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


def test_images_that_are_there_and_those_that_appear_are_yielded_once(tmp_path, image):
    save(image, tmp_path / "a.png")
    time = Time(nothing, lambda: save(image, tmp_path / "day" / "b.png"), lambda: save(image, tmp_path / "c.png"))
    assert watched(tmp_path, time) == ["a.png", os.path.join("day", "b.png"), "c.png"]


def test_an_image_that_is_being_written_is_yielded_when_it_is_complete(tmp_path, image):
    content = save(image, tmp_path / "whole.png").read_bytes()
    (tmp_path / "whole.png").unlink()
    target, ready = tmp_path / "a.png", []

    def write(end: int, seconds: int):
        def event() -> None:
            target.write_bytes(content[:end])
            changed_at(target, seconds)
            ready.append(end == len(content))

        return event

    part = len(content) // 3
    time = Time(write(part, 1), write(2 * part, 2), nothing, nothing, nothing, write(len(content), 3))
    folder = WatchedFolder(tmp_path, 1.0, 20.0, sleep=time.sleep, clock=lambda: time.now)
    assert next(iter(folder)).path == target
    assert ready == [False, False, True]


def test_a_damaged_image_is_yielded_after_a_while_so_that_it_is_reported(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    assert watched(tmp_path, Time()) == ["a.png"]


def test_an_image_that_is_written_again_is_yielded_again(tmp_path, image):
    changed_at(save(image, tmp_path / "latest.png"), 1)
    time = Time(nothing, nothing, lambda: changed_at(save(255 - image, tmp_path / "latest.png"), 2))
    assert watched(tmp_path, time) == ["latest.png", "latest.png"]


def test_an_image_that_is_removed_is_forgotten(tmp_path, image):
    save(image, tmp_path / "a.png")
    assert watched(tmp_path, Time((tmp_path / "a.png").unlink)) == []


def test_a_folder_that_goes_and_comes_back_is_waited_for_and_nothing_is_repeated(tmp_path, image, capsys):
    hot, away = tmp_path / "hot", tmp_path / "away"
    save(image, hot / "a.png")
    back = [lambda: save(image, hot / "b.png")]
    time = Time(nothing, nothing, lambda: hot.rename(away), nothing, nothing, lambda: away.rename(hot), *back)
    assert watched(hot, time) == ["a.png", "b.png"]
    gone, returned = capsys.readouterr().err.splitlines()
    assert gone.startswith(f"warning: {hot}: the folder cannot be listed")
    assert returned == f"{hot} is back"


def test_an_empty_mount_point_does_not_make_its_images_new(tmp_path, image):
    hot, away = tmp_path / "hot", tmp_path / "away"
    save(image, hot / "a.png")

    def unmounted() -> None:
        hot.rename(away)
        hot.mkdir()

    def mounted() -> None:
        hot.rmdir()
        away.rename(hot)

    assert watched(hot, Time(nothing, nothing, unmounted, nothing, mounted)) == ["a.png"]


def test_an_image_that_changes_while_others_are_inspected_is_yielded_once(tmp_path, image):
    for name in ("a.png", "b.png"):
        changed_at(save(image, tmp_path / name), 1)
    time = Time()
    seen = []
    for found in WatchedFolder(tmp_path, 1.0, 20.0, sleep=time.sleep, clock=lambda: time.now):
        seen.append(found.path.name)
        if seen == ["a.png"]:
            changed_at(tmp_path / "b.png", 2)
    assert seen == ["a.png", "b.png"]


def test_the_images_that_are_remembered_do_not_grow_without_end(tmp_path, image, monkeypatch):
    monkeypatch.setattr(watching, "_MOST_GONE", 1)
    for name in ("a.png", "b.png", "c.png"):
        save(image, tmp_path / name)
    events = [nothing, *((tmp_path / name).unlink for name in ("a.png", "b.png")), nothing]
    time = Time(*events)
    folder = WatchedFolder(tmp_path, 1.0, 5.0, sleep=time.sleep, clock=lambda: time.now)
    assert len(list(folder)) == 3
    assert [path.name for path in folder._done] == ["b.png", "c.png"]


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        WatchedFolder(tmp_path / "nowhere")
