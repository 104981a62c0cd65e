"""Train the small backbone that is part of the package, on generated pictures only.

    python tools/train_embedded_backbone.py

First, a pool of generated pictures is built, each with the feature maps of the teacher, a ResNet18 pretrained on
ImageNet. Then the small network is trained to reproduce these feature maps. An interrupted run continues where it
stopped when the same command is run again, and ends with the same weights. The results are the weights, with batch
norms folded, and a model card.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from distillation import Distillation, TrainingSettings, held_out_scores, train
from picture_pool import TAUGHT_LEVELS, TEACHER, Pool, PoolSettings, build_pool, load_teacher
from safetensors.torch import save
from torch import nn

from skpbas.core.backbones import embedded
from skpbas.core.backbones.embedded import EmbeddedBackbone, shipped_form

TIMING_ROUNDS = 30
logger = logging.getLogger("train_embedded_backbone")
_WEIGHTS = Path(embedded.__file__).with_name(embedded.WEIGHTS_FILE)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output", type=Path, default=_WEIGHTS, help="weights file; the model card is written next to it (.md)")
    add("--work", type=Path, default=Path(".embedded-training"), help="folder for the pool and the checkpoint")
    add(
        "--teacher-weights", default="imagenet", help='state dict of the teacher, or "imagenet" for that of torchvision'
    )
    add("--steps", type=int, default=20_000)
    add("--batch-size", type=int, default=8)
    add("--learning-rate", type=float, default=4e-3)
    add("--weight-decay", type=float, default=0.01)
    add("--seed", type=int, default=0)
    add("--side", type=int, default=160, help="height and width of the pictures; a multiple of 16")
    add("--shards", type=int, default=40, help="number of shards to train on; one more is held out")
    add("--shard-size", type=int, default=256, help="number of pictures per shard")
    add("--device", default="auto", help='"auto" for a GPU if there is one')
    add(
        "--threads",
        type=int,
        default=1,
        help="number of torch's threads, which the weights depend on in their last bits",
    )
    add("--workers", type=int, default=2, help="number of processes that build the pool")
    add("--bf16", action="store_true", help="bfloat16 arithmetic, which is faster on processors that support it")
    add("--checkpoint-every", type=int, default=100, help="number of steps between checkpoints")
    options = parser.parse_args(arguments)
    if options.side % 16:
        parser.error(f"--side {options.side} is not a multiple of 16")
    return options


def resolve_device(name: str) -> torch.device:
    """Return the device to train on."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def seconds_per_image(networks: Mapping[str, nn.Module], side: int = 256) -> dict[str, float]:
    """Return each network's median time per image; they take turns, so that other load affects all of them."""
    image = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(TIMING_ROUNDS):
        for name, network in networks.items():
            network(image)
            started = time.perf_counter()
            network(image)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content)
    partial.replace(path)


def model_card(options: argparse.Namespace, distillation: Distillation, size: int) -> str:
    """Return the model card of the weights, as Markdown."""
    network = shipped_form(distillation.network.cpu()).to(memory_format=torch.channels_last)
    times = seconds_per_image({"teacher": load_teacher(options.teacher_weights), "embedded": network})
    rows = [
        f"| {level} | {s['explained']:.3f} | {s['cosine']:.3f} |"
        for level, s in held_out_scores(distillation.pool, distillation.network).items()
    ]
    settings, pool = distillation.settings, distillation.pool
    passes = settings.steps * settings.batch_size / pool.size
    lines = [
        "# The embedded backbone",
        "",
        f"Architecture: `skpbas/core/backbones/embedded.py`, widths {embedded.WIDTHS}, blocks {embedded.DEPTHS}, "
        f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, {size / 1e6:.2f} MB in fp16, "
        "batch norms folded.",
        "",
        f"- Data: {pool.size} generated pictures of {options.side} x {options.side} pixels "
        "(`tools/pictures`: materials and parts, fractals, noise, collages and mixtures); no photograph, and no image "
        "of any data set.",
        f"- Teacher: {TEACHER}, ImageNet weights (torchvision's IMAGENET1K_V1); its {' and '.join(TAUGHT_LEVELS)} "
        "feature maps, after their ReLU, were the targets. The teacher itself was trained on ImageNet.",
        f"- Training: {settings.steps} steps of {settings.batch_size} pictures ({passes:.1f} passes), AdamW, learning "
        f"rate {settings.learning_rate:g}, weight decay {settings.weight_decay:g}, seed {settings.seed}, "
        f"{'bfloat16' if settings.bf16 else 'float32'} convolutions, {settings.n_threads} thread(s).",
        f"- Time in training steps: {distillation.seconds / 60:.0f} minutes on {distillation.device.type} "
        f"({platform.machine()}), including the effects of other load on the machine.",
        f"- One 256 x 256 image, median of interleaved runs on {torch.get_num_threads()} thread(s): teacher "
        f"{1e3 * times['teacher']:.1f} ms, embedded {1e3 * times['embedded']:.1f} ms "
        f"({times['teacher'] / times['embedded']:.1f} times the throughput).",
        "",
        f"Agreement with the teacher on {pool.settings.shard_size} held-out pictures (fraction of the variance "
        "explained, and mean cosine similarity of the feature vectors, centered at the teacher's mean):",
        "",
        "| level | explained | cosine |",
        "| --- | --- | --- |",
        *rows,
        "",
    ]
    return "\n".join(lines)


def export(network: EmbeddedBackbone) -> bytes:
    """Return a trained network as shipped: batch norms folded, fp16, in safetensors format."""
    folded = shipped_form(network.cpu())
    return save({name: tensor.half().contiguous() for name, tensor in folded.state_dict().items()})


def main(arguments: Sequence[str] | None = None) -> int:
    """Start or continue training; write the weights and the model card."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = resolve_device(options.device)
    pool_settings = PoolSettings(
        folder=options.work / "pool",
        seed=options.seed,
        side=options.side,
        shard_size=options.shard_size,
        n_shards=options.shards,
        teacher_weights=options.teacher_weights,
        device=str(device),
        n_workers=options.workers,
    )
    settings = TrainingSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        seed=options.seed,
        bf16=options.bf16,
        n_threads=options.threads,
    )
    torch.set_num_threads(settings.n_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    build_pool(pool_settings)
    distillation = Distillation(Pool(pool_settings), settings, device)
    checkpoint = options.work / "checkpoint.pt"
    if checkpoint.exists():
        distillation.resume(checkpoint)
        logger.info("continuing at step %d", distillation.step)
    train(distillation, checkpoint, options.checkpoint_every)
    weights = export(distillation.network)
    card = model_card(options, distillation, len(weights))
    write_atomically(options.output, weights)
    write_atomically(options.output.with_suffix(".md"), card.encode())
    logger.info("%s", card)
    logger.info("wrote %s and its model card", options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
