"""What the comparison with other detectors rests on, without the environment that has them."""

import csv
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image
from scipy import stats

from skpbas import PBASDetector
from skpbas.core.networks import Discriminator, Projector

PEERS = ROOT / "benchmarks" / "peers"
sys.path[:0] = [str(PEERS.parent), str(PEERS)]

import compare  # noqa: E402
import greedy_coreset  # noqa: E402
import simplenet  # noqa: E402


def image_files(folder, shape, n=6):
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(n)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)
    return paths


def slow_coreset(points, n_selected, first):
    """Selection with every distance computed."""
    distance = torch.full((len(points),), torch.inf)
    selected = [first]
    while len(selected) < n_selected:
        distance = torch.minimum(distance, torch.linalg.norm(points - points[selected[-1]], dim=1))
        selected.append(int(distance.argmax()))
        distance[selected[-1]] = 0
    return selected


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_sooner_coreset_has_the_same_patches_in_the_same_order(scale, offset):
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2, 60)
    points = scale * (offset + torch.randn(800, 60, generator=generator) * spread)
    points[400:500] = points[:100]  # equal patches
    assert greedy_coreset.greedy_coreset(points, 200, 7).tolist() == slow_coreset(points, 200, 7)


def test_a_coreset_of_all_patches_has_each_of_them():
    points = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    assert sorted(greedy_coreset.greedy_coreset(points, 50, 3).tolist()) == list(range(50))


@pytest.mark.parametrize(("shape", "names"), [((64, 64), ["stretch"]), ((120, 48), ["stretch", "aspect"])])
def test_the_shapes_of_the_comparison_are_those_of_the_detector(tmp_path, shape, names):
    paths = image_files(tmp_path, shape)
    shapes = compare.shapes_of(paths, 64)
    assert list(shapes) == names
    for resize in ("stretch", "aspect"):
        detector = PBASDetector("embedded", image_size=64, resize=resize, max_epochs=1, random_state=0).fit(paths)
        assert detector.map_shape_ == shapes.get(resize, shapes["stretch"])


def simplenet_objective(noise_seed=0):
    generator = torch.Generator().manual_seed(1)
    networks = Projector(6, generator, "xavier"), Discriminator(6, 8, generator)
    noise = torch.Generator().manual_seed(noise_seed)
    settings = {"synthesis": "gaussian", "alpha": 0.3, "noise_std": 0.5, "generator": noise}
    return simplenet.SimpleNetObjective(*networks, torch.rand(5, 6, generator=generator), **settings)


def test_anomalies_of_simplenet_are_adapted_features_with_normal_noise_in_each_dimension():
    terms = simplenet_objective()(torch.randn(4000, 6, generator=torch.Generator().manual_seed(2)))
    noise = (terms.anomalies - terms.projected).detach().double().numpy()
    for dimension in noise.T:
        assert stats.kstest(dimension, stats.norm(0, 0.5).cdf).pvalue > 1e-3
    together = np.corrcoef(noise.T, terms.projected.detach().numpy().T)
    assert np.abs(together - np.eye(12))[:6].max() < 5 / np.sqrt(4000)  # five standard errors


def test_the_loss_of_simplenet_is_that_of_its_equations():
    objective = simplenet_objective()
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    terms = objective(features)
    noise = torch.empty(40, 6).normal_(0, 0.5, generator=torch.Generator().manual_seed(0)).numpy()

    weights = {name: value.detach().double().numpy() for name, value in objective.named_parameters()}
    adapted = [weights["projector.linear.weight"] @ o + weights["projector.linear.bias"] for o in features.numpy()]
    both = adapted + [q + e for q, e in zip(adapted, noise, strict=True)]
    hidden = np.array([weights["discriminator.hidden.weight"] @ q + weights["discriminator.hidden.bias"] for q in both])
    normalized = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    active = normalized * weights["discriminator.norm.weight"] + weights["discriminator.norm.bias"]
    positive = -np.where(active > 0, active, 0.2 * active) @ weights["discriminator.output.weight"][0]  # D
    loss = 0.0
    for of_normal, of_anomaly in zip(positive[:40], positive[40:], strict=True):
        loss += (max(0, 0.5 - of_normal) + max(0, 0.5 + of_anomaly)) / 40
    assert terms.total.item() == pytest.approx(loss, rel=1e-5)


def test_centers_play_no_part_in_simplenet():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    losses = []
    for center in (torch.zeros(5, 6), torch.ones(5, 6)):
        objective = simplenet_objective()
        objective.center.copy_(center)
        losses.append(objective(features).losses())
    assert set(losses[0]) == {"normal", "anomaly"}
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_simplenet_takes_the_highest_patch_as_the_score_of_an_image(tmp_path, resnet18_file):
    paths = image_files(tmp_path, (64, 64))
    method = simplenet.SimpleNet(resnet18_file, 64, "stretch", 0, max_epochs=1)
    method.fit(paths)
    score, anomaly_map = method.predict(paths[0])
    assert anomaly_map.shape == (64, 64)
    method.model.renderer = torch.nn.Identity()
    method.model.patch_scorer.maps = lambda scores, renderer: scores
    _, patch_scores = method.predict(paths[0])
    assert score == patch_scores.max()


@pytest.fixture
def resnet18_file(tmp_path):
    from torchvision.models import resnet18

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = resnet18(weights=None).state_dict()
    path = tmp_path / "resnet18.pth"
    torch.save({name: value for name, value in state.items() if not name.startswith(("layer4", "fc"))}, path)
    return path


def row(method, seed="0", error="", **figures):
    columns = {column: "0.5" for column, _, _ in compare.FIGURES.values()}
    key = {"category": "nut", "resize": "aspect", "shape": "96 x 64", "threads": "1", "method": method, "seed": seed}
    return {**key, **columns, **figures, "error": error}


def lines_of(table):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: dict(zip(lines[0][1:], cells, strict=True)) for name, *cells in lines[2:]}


def test_the_best_value_of_a_line_is_marked_whoever_has_it():
    rows = [row("skpbas", pixel_pro="0.8", ms_per_image="20"), row("patchcore", pixel_pro="0.9", ms_per_image="30")]
    lines = lines_of(compare.tables(rows))
    assert lines["PRO"] == {"skpbas": "0.800", "patchcore": "**0.900**"}
    assert lines["ms per image"] == {"skpbas": "**20**", "patchcore": "30"}
    assert lines["image AP"] == {"skpbas": "**0.500**", "patchcore": "**0.500**"}


def test_a_table_averages_seeds_and_takes_the_last_row_of_a_run():
    rows = [row("padim", pixel_pro="0.1"), row("padim", pixel_pro="0.6"), row("padim", "1", pixel_pro="0.8")]
    lines = lines_of(compare.tables(rows))
    assert lines["seeds"] == {"padim": "2"}
    assert lines["PRO"] == {"padim": "**0.700**"}


def test_a_method_that_failed_is_shown_as_failed_and_is_not_the_best():
    empty = dict.fromkeys((column for column, _, _ in compare.FIGURES.values()), "")
    lines = lines_of(compare.tables([row("skpbas"), row("padim", error="MemoryError: ", **empty)]))
    assert lines["seeds"] == {"skpbas": "1", "padim": "0"}
    assert lines["PRO"] == {"skpbas": "**0.500**", "padim": "failed"}


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """Compare methods of which padim fails; the runs that were made, and the file of the rows."""
    runs, output = [], tmp_path / "peers.csv"

    def in_child(function, *arguments):
        if function is compare.check:
            return "checked"
        (task,) = arguments
        runs.append((task.method, task.seed))
        if task.method == "padim":
            raise MemoryError("no more of it")
        return dict.fromkeys((column for column, _, _ in compare.FIGURES.values()), 0.25)

    def run(*more):
        names = ["--data", str(tmp_path), "--weights", "none.pth", "--category", "nut", "--output", str(output)]
        names += ["--image-size", "64"]
        monkeypatch.setattr(sys, "argv", ["compare.py", *names, *more])
        compare.main()

    monkeypatch.setattr(compare, "in_child", in_child)
    monkeypatch.setattr(compare, "load_images", lambda *_: SimpleNamespace(train=image_files(tmp_path, (64, 64))))
    return run, runs, output


def test_a_failing_method_does_not_stop_the_others_and_is_reported_at_the_end(compared):
    run, runs, output = compared
    with pytest.raises(SystemExit, match=r"^failed: nut stretch 64 x 64 1 padim 0: MemoryError: no more of it$"):
        run("--method", "padim", "skpbas")
    assert runs == [("padim", 0), ("skpbas", 0)]
    with output.open(newline="") as file:
        errors = {found["method"]: found["error"] for found in csv.DictReader(file)}
    assert errors == {"padim": "MemoryError: no more of it", "skpbas": ""}
    assert "| failed |" in output.with_suffix(".md").read_text()


def test_runs_that_are_in_the_file_are_not_repeated_and_failed_ones_are(compared):
    run, runs, _ = compared
    run("--method", "skpbas")
    with pytest.raises(SystemExit):
        run("--method", "padim", "--seeds", "0")
    with pytest.raises(SystemExit):
        run("--method", "skpbas", "padim", "--seeds", "0", "1")
    assert runs == [("skpbas", 0), ("padim", 0), ("padim", 0), ("skpbas", 1), ("padim", 1)]
    with pytest.raises(SystemExit):
        run("--method", "skpbas", "--threads", "2")
    assert runs[5:] == [("skpbas", 0)]


def test_a_summary_runs_nothing_and_needs_rows(compared, capsys):
    run, runs, _ = compared
    with pytest.raises(SystemExit):
        run("--summary")
    assert "peers.csv: no rows" in capsys.readouterr().err
    assert runs == []


def test_the_recorded_rows_are_of_existing_methods_and_make_the_recorded_tables():
    rows = compare.read_rows(PEERS / "compare.csv")
    assert {row["method"] for row in rows} <= set(compare.METHODS)
    assert [row for row in rows if row["error"]] == []
    assert (PEERS / "compare.md").read_text() == compare.tables(rows) + "\n"


def test_the_script_that_makes_the_environment_is_valid_shell():
    subprocess.run(["bash", "-n", PEERS / "make_environment.sh"], check=True)
