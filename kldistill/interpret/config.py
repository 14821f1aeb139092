"""Typed schema of the group ``interpret``."""

from dataclasses import dataclass

from kldistill.runtime.config import require


@dataclass
class InterpretConfig:
    """How much text the stage looks at. The defaults take a minute or less on two cores for a model of 135M.

    Attributes:
        n_contexts: snippets of the test split, each with a new token in it.
        context_bytes: documents are cut at lines into snippets of about this many bytes.
        n_uses: uses of new tokens whose states are compared layer by layer, drawn from all uses in the contexts.
        attention_contexts: how many of the contexts are run once more for their attention; 0 leaves that out.
        neighbours: new tokens whose nearest rows are listed.
        completions: held-out lines that the original and the trained model complete, for the report; 0 for none.
        seed: draws contexts, uses and listed tokens.
    """

    n_contexts: int = 16
    context_bytes: int = 1_000
    n_uses: int = 64
    attention_contexts: int = 4
    neighbours: int = 12
    completions: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.n_contexts >= 1, "interpret.n_contexts", self.n_contexts, "must be at least 1")
        for key in ("attention_contexts", "neighbours", "completions"):
            require(getattr(self, key) >= 0, f"interpret.{key}", getattr(self, key), "must be 0 (none) or more")
        require(
            self.n_uses >= 2, "interpret.n_uses", self.n_uses, "must be at least 2: one use is compared with others"
        )
        require(self.context_bytes >= 32, "interpret.context_bytes", self.context_bytes, "must be at least 32")
