"""Small runs of the command that trains the embedded backbone, killed and resumed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import distillation
import pytest
import torch
import train_embedded_backbone
from distillation import TrainingSettings
from safetensors.torch import load_file

from skpbas.core.backbones import build_backbone
from skpbas.core.backbones.embedded import EmbeddedBackbone

ROOT = Path(__file__).parents[2]
STEPS = 25


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    network = build_backbone("resnet18", None, ("layer2", "layer3"), torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module", autouse=True)
def brief_timing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_embedded_backbone, "TIMING_ROUNDS", 1)
        yield


@pytest.fixture(autouse=True)
def torch_as_it_was():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def command(teacher, folder, steps=STEPS, **options):
    given = {
        "output": folder / "embedded.safetensors",
        "work": folder,
        "teacher-weights": teacher,
        "steps": steps,
        "batch-size": 2,
        "side": 32,
        "shards": 2,
        "shard-size": 4,
        "device": "cpu",
        "threads": 1,
        "workers": 1,
        "checkpoint-every": 2,
        **options,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def uninterrupted(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train_embedded_backbone.main(command(teacher, folder)) == 0
    return folder


def weights(folder):
    return load_file(folder / "embedded.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_killed_training_continues_and_ends_with_the_same_weights(teacher, uninterrupted, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools" / "train_embedded_backbone.py", *command(teacher, tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < STEPS, "killed too late to show anything"
    assert not (tmp_path / "embedded.safetensors").exists()
    assert train_embedded_backbone.main(command(teacher, tmp_path)) == 0
    assert same(weights(tmp_path), weights(uninterrupted))


def test_training_interrupted_between_checkpoints_ends_the_same(teacher, uninterrupted, tmp_path, monkeypatch):
    advance = distillation.Distillation.advance

    def interrupted(self):
        if self.step == 7:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(distillation.Distillation, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_embedded_backbone.main(command(teacher, tmp_path))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 6
    assert not (tmp_path / "embedded.safetensors").exists()
    train_embedded_backbone.main(command(teacher, tmp_path))
    assert same(weights(tmp_path), weights(uninterrupted))


def test_another_seed_gives_different_weights(teacher, uninterrupted, tmp_path):
    train_embedded_backbone.main(command(teacher, tmp_path, seed=1))
    assert not same(weights(tmp_path), weights(uninterrupted))


def test_written_weights_are_those_of_the_folded_network_in_fp16(uninterrupted):
    shapes = {name: value.shape for name, value in EmbeddedBackbone().state_dict().items()}
    assert {name: value.shape for name, value in weights(uninterrupted).items()} == shapes
    assert {value.dtype for value in weights(uninterrupted).values()} == {torch.float16}


def test_the_model_card_names_data_teacher_steps_and_scores(uninterrupted):
    card = (uninterrupted / "embedded.md").read_text()
    for text in ("8 generated pictures", "resnet18", f"{STEPS} steps of 2", "minutes", "| layer2 |", "| layer3 |"):
        assert text in card


def test_the_number_of_steps_may_change_while_the_rate_is_constant(teacher, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation.Distillation, "save", stop_after_saving(at=12))
    with pytest.raises(KeyboardInterrupt):
        train_embedded_backbone.main(command(teacher, tmp_path, steps=10 * STEPS))
    monkeypatch.undo()
    train_embedded_backbone.main(command(teacher, tmp_path))
    assert same(weights(tmp_path), weights(uninterrupted))


def stop_after_saving(at):
    save = distillation.Distillation.save

    def save_then_stop(self, path):
        save(self, path)
        if self.step == at:
            raise KeyboardInterrupt

    return save_then_stop


def test_a_checkpoint_of_other_settings_is_refused(teacher, uninterrupted, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((uninterrupted / "checkpoint.pt").read_bytes())
    with pytest.raises(ValueError, match=r"learning_rate=0\.004, but learning_rate is 0\.1 now; remove the file"):
        train_embedded_backbone.main(command(teacher, tmp_path, **{"learning-rate": 0.1}))


def test_another_number_of_steps_is_refused_after_the_learning_rate_started_to_fall(teacher, uninterrupted, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((uninterrupted / "checkpoint.pt").read_bytes())
    with pytest.raises(ValueError, match=f"steps={STEPS}, but steps is 2000 now"):
        train_embedded_backbone.main(command(teacher, tmp_path, steps=2000))


def test_the_learning_rate_is_constant_then_falls_to_zero():
    settings = TrainingSettings(1000, 8, 0.1, 0.0, 0, False, 1)
    assert settings.rate(0) == pytest.approx(0.001)
    assert settings.rate(150) == settings.rate(settings.decay_start) == pytest.approx(0.1)
    assert settings.rate(850) == pytest.approx(0.05)
    assert settings.rate(999) < 0.001
