"""The training loop, on a problem without any model: rows of a matrix beside frozen ones."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ArtifactError, KldistillError
from kldistill.runtime.job import Job
from kldistill.training.checkpoint import Best
from kldistill.training.config import DistillConfig
from kldistill.training.loop import train


@dataclass
class Points:
    x: Tensor
    n_tokens: int = 10

    def to(self, device: Any) -> "Points":
        return self


class Stream(Dataset[list[Points]]):
    """Other points every step, the same for the same step, in ``passes``. Remembers which steps were asked for."""

    def __init__(self, passes: int = 1) -> None:
        self.asked: list[int] = []
        self.passes = passes

    def __getitem__(self, step: int) -> list[Points]:
        self.asked.append(step)
        points = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return [Points(part, 10 // self.passes) for part in points.chunk(self.passes)]


class Problem(nn.Module):
    """Find the rows of a matrix by what they do to random points."""

    def __init__(self, change: Callable[[Tensor, int], Tensor] = lambda loss, call: loss) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.full((3, 4), 0.5), requires_grad=False)
        self.rows = nn.Parameter(torch.zeros(2, 4))
        self.change, self.calls = change, 0

    def forward(self, batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        goal = torch.tensor([[1.0, -1.0, 2.0, 0.0], [0.0, 3.0, 0.5, -2.0]])
        loss = ((batch.x @ (self.rows - goal).T) ** 2).sum() / 32 + 0 * self.frozen.sum()
        return self.change(loss, self.calls), {"largest": self.rows.detach().abs().max()}


class Log:
    """Takes the lines of a job; ``rewind`` as the tracker does it. Stops the run at a step if asked."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.stop_at = stop_at

    def log(self, metrics: dict[str, float], step: int) -> None:
        if step == self.stop_at and "loss" in metrics:
            raise KeyboardInterrupt
        self.lines.append((step, dict(metrics)))

    def rewind(self, step: int) -> None:
        self.lines = [line for line in self.lines if line[0] <= step]

    def figures(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.lines if name in metrics]


def run(
    folder: Path,
    log: Log | None = None,
    problem: Problem | None = None,
    every: int = 5,
    factor: Callable[[str], float] = lambda name: 1.0,
    validate: Callable[[Problem], dict[str, float]] = lambda problem: {
        "validation_sum": problem.rows.detach().sum().item()
    },
    say: Callable[[str], None] = lambda text: None,
    passes: int = 1,
    **settings: Any,
) -> tuple[Problem, Log, dict[str, float], Stream]:
    folder.mkdir(exist_ok=True)
    problem, log, stream = problem or Problem(), log or Log(), Stream(passes)
    job = Job(RuntimeConfig(device="cpu", checkpoint_every=every), log=log.log, rewind=log.rewind, say=say)
    cfg = DistillConfig(**{"steps": 20, "lr": 0.1, "validate_every": 8, **settings})
    made = train(
        problem,
        stream,
        cfg,
        folder / "checkpoint.safetensors",
        job,
        description="Training",
        validate=lambda: validate(problem),
        factor=factor,
    )
    return problem, log, made, stream


def checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118


def test_loss_falls_and_every_step_is_logged(tmp_path: Path) -> None:
    problem, log, made, stream = run(tmp_path, steps=60, lr=0.2)
    losses = log.figures("loss")
    assert len(losses) == 60
    assert losses[-1] < 0.05 * losses[0]
    assert stream.asked == list(range(60))
    assert [step for step, metrics in log.lines if "loss" in metrics] == list(range(1, 61))
    assert [step for step, metrics in log.lines if "validation_sum" in metrics] == [0, *range(8, 57, 8), 60]
    assert made["validation_sum"] == problem.rows.detach().sum().item()
    assert made["tokens_per_second"] > 0
    assert made["seconds"] > 0
    assert made["peak_memory_bytes"] > 1e7
    assert log.figures("largest")[0] == 0


def test_a_step_of_several_passes_is_the_same_step(tmp_path: Path) -> None:
    """Gradients, losses and tokens add up; the rows move once a step."""
    whole, log, *_ = run(tmp_path / "whole")
    parts, in_parts, *_ = run(tmp_path / "parts", passes=2)
    torch.testing.assert_close(parts.rows, whole.rows)
    assert in_parts.figures("loss") == pytest.approx(log.figures("loss"), rel=1e-5)
    assert parts.calls == 2 * whole.calls
    assert checkpoint(tmp_path / "parts")[1]["tokens"] == checkpoint(tmp_path / "whole")[1]["tokens"] == 200


def test_only_what_asks_for_a_gradient_is_trained_and_kept(tmp_path: Path) -> None:
    problem, *_ = run(tmp_path, weight_decay=0.1)
    assert torch.equal(problem.frozen, torch.full((3, 4), 0.5))
    assert problem.frozen.grad is None
    tensors, state = checkpoint(tmp_path)
    assert sorted(tensors) == ["exp_avg/rows", "exp_avg_sq/rows", "parameter/rows", "step/rows"]
    assert torch.equal(tensors["parameter/rows"], problem.rows)
    assert (state["step"], state["tokens"]) == (20, 200)


@pytest.mark.parametrize("damage", ["a bit of a tensor", "a bit of the counters", "the end is missing", "no checksum"])
def test_a_damaged_checkpoint_is_refused_and_says_how_to_begin_anew(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "distill" / "0123456789abcdef.partial"
    folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        run(folder, Log(stop_at=9))
    path = folder / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "a bit of a tensor":
        content[-3] ^= 1
    elif damage == "a bit of the counters":
        at = content.index(b"tokens")
        content[content.index(b"50", at)] ^= 1
    elif damage == "the end is missing":
        del content[-8:]
    else:
        content = content.replace(b"sha256", b"sha257")
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"checkpoint is damaged .* force=\[distill\] trains from the beginning"):
        run(folder)


@pytest.mark.parametrize("stop_at", [1, 5, 6, 9, 16, 20])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    """Stopped after the optimiser's step but before the checkpoint of step ``stop_at``."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, whole_log, figures, _ = run(tmp_path / "a")
    log = Log(stop_at)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", log)
    log.stop_at = None
    said: list[str] = []
    resumed, _, again, stream = run(tmp_path / "b", log, say=said.append)
    done = (stop_at - 1) // 5 * 5
    assert stream.asked == list(range(done, 20))  # from the last checkpoint on
    assert [text for text in said if "goes on" in text] == [f"Training goes on after step {done} of 20."] * bool(done)
    assert torch.equal(resumed.rows, whole.rows)
    assert [step for step, _ in log.lines] == [step for step, _ in whole_log.lines]
    for name in ("loss", "lr", "gradient_norm", "validation_sum"):
        assert log.figures(name) == whole_log.figures(name)
    assert again["validation_sum"] == figures["validation_sum"]
    kept, wanted = checkpoint(tmp_path / "b")[0], checkpoint(tmp_path / "a")[0]
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)


class Judged:
    """A validation that finds given figures, one after the other, and remembers the rows that they are of."""

    def __init__(self, *figures: float, name: str = "kl_to_teacher") -> None:
        self.figures, self.name = list(figures), f"validation_{name}"
        self.rows: list[Tensor] = []

    def __call__(self, problem: Problem) -> dict[str, float]:
        self.rows.append(problem.rows.detach().clone())
        return {"validation_bits_per_byte": 1.0 / len(self.rows), self.name: self.figures[len(self.rows) - 1]}


def test_the_best_by_validation_is_what_is_left(tmp_path: Path) -> None:
    judged = Judged(5.0, 3.0, 4.0, 3.5)  # at steps 0, 8, 16 and 20
    problem, _, made, _ = run(tmp_path / "best", validate=judged, best_by="kl_to_teacher")
    assert torch.equal(problem.rows, judged.rows[1]) and not torch.equal(problem.rows, judged.rows[3])
    assert (made["validation_kl_to_teacher"], made["validation_bits_per_byte"], made["best_step"]) == (3.0, 0.5, 8)
    judged = Judged(5.0, 3.0, 4.0, 3.5)
    problem, _, made, _ = run(tmp_path / "last", validate=judged)
    assert torch.equal(problem.rows, judged.rows[3])
    assert made["validation_kl_to_teacher"] == 3.5 and "best_step" not in made


def test_training_that_never_helped_is_told_and_undone(tmp_path: Path) -> None:
    said: list[str] = []
    judged = Judged(2.0, 3.0, 4.0, 2.0)
    problem, _, made, _ = run(tmp_path, validate=judged, best_by="kl_to_teacher", say=said.append)
    assert torch.equal(problem.rows, judged.rows[0]) and made["best_step"] == 0
    assert said[0].startswith("Warning: Training: at no step was validation_kl_to_teacher on validation text better")


def test_without_a_teacher_the_first_figure_chooses(tmp_path: Path) -> None:
    judged = Judged(1.0, 2.0, 3.0, 4.0, name="other")
    problem, _, made, _ = run(tmp_path, validate=judged, best_by="kl_to_teacher")
    assert torch.equal(problem.rows, judged.rows[3]) and made["validation_bits_per_byte"] == 0.25


def test_a_validation_without_its_figure_chooses_nothing() -> None:
    """Once it was no number, which is left out of the figures: the training is judged by it as before."""
    best = Best("kl_to_teacher", {"p": nn.Parameter(torch.zeros(1))})
    best.see(0, {"validation_bits_per_byte": 3.0, "validation_kl_to_teacher": 1.0})
    best.see(1, {"validation_bits_per_byte": 1.0})
    best.see(2, {"validation_bits_per_byte": 2.0, "validation_kl_to_teacher": 0.5})
    assert best.step == 2 and best.name == "validation_kl_to_teacher"


@pytest.mark.parametrize("stop_at", [6, 9, 16, 20])
def test_a_stopped_run_remembers_its_best(tmp_path: Path, stop_at: int) -> None:
    values = [5.0, 3.0, 4.0, 3.5]
    log = Log(stop_at)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, log, validate=Judged(*values), best_by="kl_to_teacher")
    log.stop_at = None
    done = sum(at <= (stop_at - 1) // 5 * 5 for at in (0, 8, 16, 20))
    resumed, _, made, _ = run(tmp_path, log, validate=Judged(*values[done:]), best_by="kl_to_teacher")
    whole, _, wanted, _ = run(tmp_path / "whole", validate=Judged(*values), best_by="kl_to_teacher")
    assert torch.equal(resumed.rows, whole.rows)
    assert (made["best_step"], made["validation_kl_to_teacher"]) == (wanted["best_step"], 3.0) == (8, 3.0)


def test_a_run_that_was_stopped_after_its_last_step_has_nothing_to_do(tmp_path: Path) -> None:
    first, _, figures, _ = run(tmp_path)
    again, _, made, stream = run(tmp_path)
    assert stream.asked == []
    assert torch.equal(first.rows, again.rows)
    assert made["validation_sum"] == figures["validation_sum"]
    assert made["tokens_per_second"] == pytest.approx(figures["tokens_per_second"])


def test_rates_of_warm_up_and_linear_decay(tmp_path: Path) -> None:
    _, log, *_ = run(tmp_path, steps=10, warmup=0.4, schedule="linear", lr=0.7)
    rates = [0.25, 0.5, 0.75, 1, *(1 - n / 7 for n in range(1, 7))]  # never 0: no step is wasted
    assert log.figures("lr") == pytest.approx([0.7 * rate for rate in rates])


def test_rates_of_cosine_and_constant(tmp_path: Path) -> None:
    _, log, *_ = run(tmp_path, steps=10, warmup=0.1, lr=1.0)
    assert log.figures("lr") == pytest.approx([0.5 + 0.5 * math.cos(math.pi * n / 10) for n in range(10)])
    (tmp_path / "b").mkdir()
    _, log, *_ = run(tmp_path / "b", steps=4, warmup=0.5, schedule="constant_with_warmup", lr=1.0)
    assert log.figures("lr") == pytest.approx([0.5, 1, 1, 1])


def test_without_warm_up_the_first_step_is_a_whole_one(tmp_path: Path) -> None:
    _, log, *_ = run(tmp_path, steps=3, warmup=0.0, schedule="constant_with_warmup", lr=0.3)
    assert log.figures("lr") == pytest.approx([0.3] * 3)


def test_a_parameter_may_have_a_rate_of_its_own(tmp_path: Path) -> None:
    settings = {"steps": 1, "warmup": 0.0, "schedule": "constant_with_warmup", "lr": 0.1}
    problem, log, *_ = run(tmp_path, factor=lambda name: 0.5 if name == "rows" else 7.0, **settings)
    assert problem.rows.detach().abs().max().item() == pytest.approx(0.05, rel=1e-3)  # Adam's first step is its rate
    assert log.figures("lr") == [0.1]


class Noisy(Problem):
    """Draws numbers in every step, as dropout does."""

    def forward(self, batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = super().forward(batch)
        return loss * (1 + torch.rand(())), figures


def test_what_a_step_draws_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    whole, other = run(tmp_path / "a", problem=Noisy())[1], run(tmp_path / "c", problem=Noisy(), seed=1)[1]
    log = Log(stop_at=13)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", log, Noisy())
    log.stop_at = None
    torch.rand(5)
    run(tmp_path / "b", log, Noisy())
    assert log.figures("loss") == whole.figures("loss")
    assert other.figures("loss")[0] != whole.figures("loss")[0]


def test_the_gradient_is_clipped_and_its_norm_logged_before(tmp_path: Path) -> None:
    _, log, *_ = run(tmp_path, steps=1, clip=0.25)
    assert log.figures("gradient_norm")[0] > 1
    moment = checkpoint(tmp_path)[0]["exp_avg/rows"]  # (1 - 0.9) times the first gradient
    assert moment.norm().item() == pytest.approx(0.1 * 0.25, rel=1e-3)


def infinite_gradient(loss: Tensor, call: int) -> Tensor:
    """Adds 0 with an infinite derivative, in the third step."""
    return loss + torch.sqrt(loss - loss.detach()) if call == 3 else loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loss, call: loss * math.nan if call == 3 else loss, "The loss is nan at step 3: lower the learning"),
        (infinite_gradient, "The gradient's norm is (inf|nan) at step 3: lower the learning"),
    ],
)
def test_what_is_not_finite_stops_the_run_and_reaches_no_parameter(
    tmp_path: Path, change: Callable[[Tensor, int], Tensor], message: str
) -> None:
    problem, log = Problem(change), Log()
    with pytest.raises(KldistillError, match=message):
        run(tmp_path, log, problem, every=1)
    assert problem.rows.isfinite().all()
    assert checkpoint(tmp_path)[1]["step"] == 2
    assert len(log.figures("loss")) == 2
