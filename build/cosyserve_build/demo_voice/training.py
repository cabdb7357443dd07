"""Training loop with progress, resumable checkpoints and fixed seeds, on CUDA if available."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

_SAVE_SECONDS = 60.0
_CLIP = 1.0  # maximum norm of a gradient
_LOST = 20  # maximum number of consecutive steps without a finite gradient
_SMOOTH = 0.98  # smoothing of the displayed loss

Loss = Callable[[np.random.Generator, float], Tensor]


def device() -> torch.device:
    """Return the device for training."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Run:
    """Settings of a training run.

    Attributes:
        name: of the checkpoint.
        steps: total number.
        rate: peak learning rate, after the warm-up; it decays to zero as a cosine.
        warmup: steps of linear warm-up.
        decay: weight decay of AdamW.
        average: decay of the moving average of the weights, which is the result.
        half: compute products in bfloat16; weights stay float32.
        seed: of all random draws. Each step has its own generator, so that a resumed run gives the same result.
    """

    name: str
    steps: int
    rate: float
    warmup: int = 100
    decay: float = 0.01
    average: float = 0.999
    half: bool = False
    seed: int = 0


def train(folder: Path, run: Run, module: nn.Module, loss: Loss) -> None:
    """Train `module` in place; it ends with averaged weights, in evaluation mode.

    Args:
        folder: of the checkpoint ``NAME.pt``; an interrupted run resumes from it, a finished one is only read.
        run: settings.
        module: on `device`.
        loss: computes the loss of one step, from a random generator and the finished share of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.name}.pt"
    optimizer = torch.optim.AdamW(module.parameters(), run.rate, betas=(0.9, 0.98), weight_decay=run.decay)
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    step = 0
    if path.is_file():
        kept = torch.load(path, map_location=device(), weights_only=True)
        module.load_state_dict(kept["module"])
        optimizer.load_state_dict(kept["optimizer"])
        average, step = kept["average"], kept["step"]

    def save() -> None:
        partial = path.with_suffix(".partial")
        state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
        torch.save(state, partial)
        partial.rename(path)

    module.train()
    saved, shown, lost = time.monotonic(), 0.0, 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), refresh_per_second=0.2) as progress:
        bar = progress.add_task(run.name, total=run.steps, completed=step, loss=0.0)
        while step < run.steps:
            for group in optimizer.param_groups:
                group["lr"] = run.rate * _shape(step, run)
            torch.manual_seed(run.seed * 1_000_003 + step)  # dropout
            with torch.autocast(device().type, torch.bfloat16, enabled=run.half):
                value = loss(np.random.default_rng([run.seed, step]), step / run.steps)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(module.parameters(), _CLIP)
            lost = 0 if torch.isfinite(norm) else lost + 1
            if lost > _LOST:
                raise FloatingPointError(f"{run.name}: diverged at step {step}; remove {path} and lower the rate")
            if not lost:  # a step whose gradient overflowed is skipped
                optimizer.step()
            step += 1
            _follow(average, module, min(run.average, step / (step + 10)))
            shown = value.item() if shown == 0.0 else _SMOOTH * shown + (1 - _SMOOTH) * value.item()
            progress.update(bar, completed=step, loss=shown)
            if time.monotonic() - saved > _SAVE_SECONDS or step == run.steps:
                save()
                saved = time.monotonic()
                if not progress.console.is_terminal:
                    print(f"{run.name}: step {step} of {run.steps}, loss {shown:.4f}", flush=True)
    module.load_state_dict(average)
    module.eval()


def _shape(step: int, run: Run) -> float:
    if step < run.warmup:
        return (step + 1) / run.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - run.warmup) / max(1, run.steps - run.warmup)))


@torch.no_grad()
def _follow(average: dict[str, Tensor], module: nn.Module, share: float) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - share)
        else:
            average[name].copy_(value)
