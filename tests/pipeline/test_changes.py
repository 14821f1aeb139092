"""What a run was asked for, beside the defaults of its day."""

from kldistill.pipeline.changes import changes


def test_keys_that_are_gone_are_one_line() -> None:
    default = {"loss": {"name": "kl_ce", "terms": {"kl": {"weight": 1.0, "of": "logits"}, "ce": {"weight": 1.0}}}}
    config = {"loss": {"name": "ce", "terms": {"ce": {"weight": 1.0}}}, "more": True, "distill": {"loss": {"name": 1}}}
    assert changes(config, default) == [
        ("loss.name", "ce", "kl_ce"),
        ("more", "true", None),
        ("loss.terms.kl", None, "there"),
    ]
