"""The pictures of a run."""

import json
from pathlib import Path

from matplotlib import image

from kldistill.report.data import read_run
from kldistill.report.run.charts import panels
from kldistill.report.run.pictures import learning, standing
from tests.helpers.report_material import write_run


def write(folder: Path, lines: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_learning_curves_of_a_run(tmp_path: Path) -> None:
    train = [{"stage": "distill", "step": s, "distill/loss": 1 / s, "distill/kl": 0.5 / s} for s in range(1, 5)]
    validation = [{"stage": "distill", "step": s, "distill/validation_bits_per_byte": 1.0} for s in (0, 4)]
    write(tmp_path, [*train, *validation])
    path = learning(tmp_path)
    assert path == tmp_path / "learning.png"
    height, width = image.imread(path).shape[:2]
    assert width > height  # two panels side by side: training and bits per byte; no KL was logged


def test_nothing_trained_no_picture(tmp_path: Path) -> None:
    write(tmp_path, [{"stage": "corpus", "step": None, "corpus/train/bytes": 3}])
    assert learning(tmp_path) is None
    assert standing({"eval/original/domain/bits_per_byte": 1.0}, tmp_path) is None
    assert list(tmp_path.glob("*.png")) == []


def test_where_the_models_stand(tmp_path: Path) -> None:
    metrics = {"eval/original/domain/bits_per_byte": 0.9}
    for name, value in (("init", 1.2), ("distilled", 1.0)):
        for key, at in (("bits_per_byte", value), ("kl_to_teacher", value / 3)):
            metrics |= {
                f"eval/{name}/domain/{key}{end}": at + d for end, d in (("", 0), ("/low", -0.1), ("/high", 0.1))
            }
    path = standing(metrics, tmp_path)
    assert path is not None
    assert image.imread(path).std() > 0.05  # something was drawn on the white page


def test_the_controls_curves_stand_beside_those_of_the_fine_tuned_model(tmp_path: Path) -> None:
    write_run(tmp_path, "kl", "mean", 0, bits=1.0, kl=0.4)
    lines: list[dict] = [
        {"stage": stage, "step": step, f"{stage}/ce": 2.0 - step, f"{stage}/validation_bits_per_byte": bits - step}
        for stage, bits in (("finetune", 4.0), ("control", 5.0))
        for step in (0, 1)
    ]
    write(tmp_path, lines)
    found = {(panel.stage, panel.title): panel.series for panel in panels(read_run(tmp_path))}
    points = {"fine-tuned": [(0, 4.0), (1, 3.0)], "original, fine-tuned": [(0, 5.0), (1, 4.0)]}
    assert found["finetune", "validation, Bits per byte"] == points
    assert found["control", "training loss"] == {"ce": [(0, 2.0), (1, 1.0)]}
    assert not any(stage == "control" and title.startswith("validation") for stage, title in found)
