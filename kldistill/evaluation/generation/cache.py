"""A key-value cache that grows in place: transformers' own copies everything it holds for every token that is added.

Shapes of keys and values: (rows, heads, columns, width of a head).
"""

from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE = 64  # columns to grow into


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, which are views of buffers with columns to spare.

    Layers with a sliding window use it too: every column is kept, and their masks hide what they must not see.
    """

    _buffers: tuple[Tensor, Tensor] | None = None

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        assert self.keys is not None and self.values is not None, "nothing was run"
        return self.keys, self.values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add columns; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        keys, values = self.pair
        had = keys.shape[2]
        width = had + key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < width:
            spare = width - had + SPARE
            self._buffers = F.pad(keys, (0, 0, 0, spare)), F.pad(values, (0, 0, 0, spare))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, had:width] = states
        keys, values = (buffer[:, :, :width] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Hold other keys and values."""
        self.keys, self.values, self._buffers = keys, values, None


class Cache(DynamicCache):
    """A cache of growing layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer

    @property
    def grown(self) -> list[GrowingLayer]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, GrowingLayer)]

    def select_rows(self, index: Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        for layer in self.grown:
            layer.replace(*(states[index] for states in layer.pair))
