"""Train CLIP task after task in one plain loop, as it is usually written: what ``benchmarks.whole`` compares with.

    python -m benchmarks.plain SPEC.json [tuned]

SPEC names a saved open_clip model and, for each task, its training images (new ones, then exemplars), the order of its
batches and its test images. Nothing of everclip is imported. ``tuned`` is what anyone may add in four lines:
channels-last weights, batch norm and dropout in evaluation mode, captions cut at the longest, fused AdamW. Prints
accuracies: over all classes before training, and over those seen after each task.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, one_hot, pad

SPEC, TUNED = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2:] == ["tuned"]
torch.manual_seed(SPEC["seed"])
folder, tasks, count = f"local-dir:{SPEC['model']}", SPEC["tasks"], len(SPEC["names"])
loaded: Any = open_clip.create_model_and_transforms(folder, force_image_size=SPEC["size"])
model, _, preprocess = loaded
tokens = open_clip.get_tokenizer(folder)([f"a photo of a {name}." for name in SPEC["names"]])
layout = torch.channels_last if TUNED else torch.contiguous_format
model = model.to(memory_format=layout)
if TUNED:
    tokens = tokens[:, : (tokens != 0).sum(1).max()]
mean, std = (torch.tensor(getattr(preprocess.transforms[-1], key))[:, None, None] for key in ("mean", "std"))
pixels: dict[str, Any] = {}
sums: list[Any] = [0, 0]
head = [torch.zeros(count, 1280, requires_grad=True), torch.zeros(count, requires_grad=True)]


def load(rows):
    """uint8 pictures ``[n, 3, s, s]`` of rows (file, label), each decoded once, and labels."""
    for file in {file for file, _ in rows} - pixels.keys():
        picture = Image.open(file).convert("RGB")
        for step in preprocess.transforms[:-2]:
            picture = step(picture)
        pixels[file] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return torch.stack([pixels[file] for file, _ in rows]), torch.tensor([label for _, label in rows])


def augment(images):
    """Each picture shifted by up to an eighth of its side, edges mirrored, and perhaps flipped."""
    by, side = images.shape[-1] // 8, images.shape[-1]
    wide, corners = (
        pad(images.float(), (by,) * 4, mode="reflect"),
        torch.randint(2 * by + 1, (len(images), 2)),
    )
    moved = torch.stack(
        [one[:, y : y + side, x : x + side] for one, (y, x) in zip(wide, corners, strict=True)]
    )
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, moved.flip(3), moved)


def encode(images):
    return model.encode_image(
        ((images.float() / 255 - mean) / std).contiguous(memory_format=layout), normalize=True
    )


def classifier(seen):
    """Weights and biases for classes."""
    if SPEC["head"] == "linear":
        return model.logit_scale.exp() * head[0][seen], head[1][seen]
    return model.logit_scale.exp() * model.encode_text(tokens[seen], normalize=True), torch.zeros(len(seen))


def passed(rows):
    return (load(rows[start : start + 128]) for start in range(0, len(rows), 128))


@torch.no_grad()
def test(tested, weight, bias, seen):
    rows = [row for task in tested for row in task["test"]]
    best = ((torch.tensor(seen)[(encode(x) @ weight.T + bias).argmax(1)], y) for x, y in passed(rows))
    return sum((guess == y).sum().item() for guess, y in best) / len(rows)


def learn(task):
    """AdamW with warm-up and cosine decay over the batches of a task."""
    groups = {"lr": [], "lr_text": [], "lr_head": head}
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(
            key not in SPEC["frozen"] and not (SPEC["head"] == "linear" and key[:5] == "text.")
        )
        groups["lr_text" if key.startswith("text.") else "lr"] += [parameter] * parameter.requires_grad
    groups = [{"params": params, "lr": SPEC[rate]} for rate, params in groups.items() if params]
    optimizer = torch.optim.AdamW(groups, weight_decay=SPEC["weight_decay"], fused=TUNED)
    total, warm = len(task["batches"]), math.ceil(0.1 * len(task["batches"]))
    factors = [
        min(1, (n + 1) / warm, 0.5 + math.cos(math.pi * (n - warm) / max(1, total - warm)) / 2)
        for n in range(total)
    ]
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, [*factors, 0].__getitem__)
    present = sorted({label for _, label in task["train"]})
    for batch in task["batches"]:
        images, labels = load([task["train"][where] for where in batch])
        weight, bias = classifier(present)
        target = (torch.tensor(present) == labels[:, None]).int().argmax(1)
        optimizer.zero_grad()
        cross_entropy(encode(augment(images)) @ weight.T + bias, target).backward()
        optimizer.step()
        rate.step()


@torch.no_grad()
def ridge(task, seen):
    """Add a task to the closed form's sums, and solve."""
    for images, labels in passed(task["train"]):
        rows = encode(images).double()
        sums[0], sums[1] = sums[0] + rows.T @ rows, sums[1] + rows.T @ one_hot(labels, count).double()
    lam = 0.3 * sums[0].diagonal().mean() * torch.eye(len(sums[0]))
    return torch.linalg.solve(sums[0] + lam, sums[1]).T[seen].float(), torch.zeros(len(seen))


model.eval()
with torch.no_grad():
    found = [test(tasks, model.encode_text(tokens, normalize=True), torch.zeros(count), range(count))]
for number, task in enumerate(tasks, 1):
    seen = sorted({label for earlier in tasks[:number] for _, label in earlier["test"]})
    if SPEC["head"] != "ridge":
        model.train(not TUNED)
        learn(task)
        model.eval()
    with torch.no_grad():
        weight, bias = ridge(task, seen) if SPEC["head"] == "ridge" else classifier(seen)
    found.append(test(tasks[:number], weight, bias, seen))
print(json.dumps(found))
