"""The pictures of a run."""

import json
from pathlib import Path

from matplotlib import image

from kldistill.report.run.pictures import learning, standing


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
