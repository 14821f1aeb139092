"""The new embedding rows, and one model that is teacher and student at once.

Shapes: B sequences, T tokens, P positions, D width, V old vocabulary, N new tokens, W = V + N.
"""

import json
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kldistill.runtime.errors import ArtifactError


class Rows(nn.Module):
    """The rows of the new tokens, float32: all that distillation trains.

    Attributes:
        input: ``Float[Parameter, "N D"]`` in the units of the old embedding matrix, before any embedding scale.
        output: ``Float[Parameter, "N D"]`` rows of the head, or None when one row serves both (tied).
        made_by: the name of the initialisation of each.
    """

    def __init__(
        self,
        input: Float[Tensor, "N D"],
        output: Float[Tensor, "N D"] | None = None,
        made_by: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        assert output is None or output.shape == input.shape
        self.input = nn.Parameter(input.detach().clone().float())
        self.output = None if output is None else nn.Parameter(output.detach().clone().float())
        self.made_by = dict(made_by or {})

    @property
    def tied(self) -> bool:
        """Whether one row serves as input and as output."""
        return self.output is None

    @property
    def head(self) -> Float[Tensor, "N D"]:
        """The rows that the head uses."""
        return self.input if self.output is None else self.output

    def save(self, folder: Path) -> None:
        """Write ``rows.safetensors`` and ``rows.json``."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "rows.safetensors")
        (folder / "rows.json").write_text(json.dumps({"tied": self.tied, **self.made_by}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Rows":
        """Read what ``save`` wrote, bit for bit. Raises ``ArtifactError``."""
        try:
            facts = json.loads((folder / "rows.json").read_text())
            tensors = load_file(folder / "rows.safetensors")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder}: the rows cannot be read: {error}") from error
        if facts.pop("tied") != ("output" not in tensors):
            raise ArtifactError(f"{folder}: rows.json and rows.safetensors disagree on whether the rows are tied.")
        return cls(tensors["input"], tensors.get("output"), facts)
