"""Teach a model your own terms on your own texts: MODEL (folder or hub id) TEXTS (folder) OUT TERM... [KEY=VALUE...]"""

import sys
from pathlib import Path

from kldistill.api import configure, slice_of
from kldistill.corpus import stage as corpus
from kldistill.export import stage as export
from kldistill.model import stage as models
from kldistill.rows import stage as init
from kldistill.runtime.job import Job
from kldistill.tokens import stage as tokens
from kldistill.training import distill, teacher

STAGES = dict(model=models, corpus=corpus, tokens=tokens, init=init, teacher=teacher, distill=distill, export=export)


def extend(model: str, texts: str, out: Path, terms: list[str], settings: list[str]) -> Path:
    out.mkdir(parents=True)
    (out / "terms.txt").write_text("\n".join(terms), encoding="utf-8")
    values = {"model.path": model, "corpus.path": texts, "tokens.terms": str(out / "terms.txt")}
    presets = ["model=hf", "corpus=local_files", "corpus.glob='**/*'", "tokens=list"]  # every file that is text
    cfg = configure(*presets, *settings, values=values)
    made: dict[str, Path] = {}
    for name, stage in STAGES.items():
        made[name] = out / name
        made[name].mkdir()
        stage.build(slice_of(cfg, name), made, made[name], Job(cfg.runtime, say=print))
    return made["export"]


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(f"usage: python extend_with_terms.py {(__doc__ or '').partition(': ')[2]}")
    words, settings = [w for w in sys.argv[4:] if "=" not in w], [w for w in sys.argv[4:] if "=" in w]
    print("The extended model:", extend(sys.argv[1], sys.argv[2], Path(sys.argv[3]), words, settings))
