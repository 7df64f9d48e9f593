"""A small classifier of the 8x8 digits: class accuracy, and the feature space of the Frechet distance."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.core.image.data import DataConfig, load_data, split
from fewstep.core.image.pictures import digits
from fewstep.core.metrics.diversity import class_accuracy
from fewstep.core.rng import Rng
from fewstep.core.tensors import expand_to

WEIGHTS = Path(__file__).parent / "weights" / "digits-classifier.safetensors"
COMMAND = "fewstep image classifier"


class DigitClassifier(nn.Module):
    """Two convolutions and two linear layers; features are the 64 activations before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, 10)

    def features(self, x: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n 64"]:
        """Return the penultimate activations of digits in [-1, 1]."""
        found: Tensor = self.body(x.float())
        return found

    def forward(self, x: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n 10"]:
        """Return the logits."""
        logits: Tensor = self.head(self.features(x))
        return logits


def train_classifier(steps: int = 1500, batch: int = 128, noise: float = 0.2, seed: int = 0) -> DigitClassifier:
    """Return a classifier trained on four fifths of the digits (AdamW, cosine decay from 2e-3, label smoothing 0.1).

    Gaussian noise of a random level up to ``noise`` and the smoothing make features change slowly with the pixels, so
    that held-out digits are hardly farther from the training digits than two halves of those are from each other.
    """
    source = load_data(DataConfig(holdout=0.2)).source
    with Rng(seed, 0, (0,)).network_noise("classifier"):
        model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rng = Rng.for_batch(seed, step, batch)
        data = source.batch(rng, "cpu")
        x = data.clean_samples("classifier")
        level = noise * expand_to(rng.uniform("level"), x)
        logits = model(x + level * rng.normal_like("noise", x))
        loss = nn.functional.cross_entropy(logits, data.cond["label"], label_smoothing=0.1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def held_out_accuracy(model: DigitClassifier) -> float:
    """Return the share of the held-out digits put into their class."""
    pictures = digits()
    held, _ = split(len(pictures), 0.2)
    images, labels = zip(*(pictures.get(index) for index in held), strict=True)
    return class_accuracy(model(torch.stack(images) * 2 - 1), torch.tensor(labels))


def save_classifier(model: DigitClassifier, file: Path) -> Path:
    """Write the weights and a card with the command that made them; returns the weights' file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    card = {"made_by": COMMAND, "held_out_accuracy": round(held_out_accuracy(model), 4), "license": "Apache-2.0"}
    file.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return file


@lru_cache(maxsize=1)
def shipped_classifier() -> DigitClassifier:
    """Return the classifier that comes with the package; UserError when its file is damaged."""
    model = DigitClassifier()
    try:
        model.load_state_dict(load_file(WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{WEIGHTS}: damaged or missing, reinstall fewstep-core or run `{COMMAND}`") from error
    return model.eval().requires_grad_(False)
