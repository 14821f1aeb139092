"""The losses. Each is a function of plain tensors and an ``Alignment``, and returns an average over positions.

``ce`` is in nats per student position, the KL losses are in nats per common boundary, ``hidden`` in squared units of
the hidden state.

To add one: write the function here in a file of its own, mark it with ``@loss`` (see ``kldistill.losses.facts``), name
it by ``_target_`` in ``conf/loss/term/NAME.yaml``, test it in ``tests/losses/test_losses.py``.
"""

from kldistill.losses.ce import ce
from kldistill.losses.hidden import hidden
from kldistill.losses.kl import kl, kl_first
from kldistill.losses.kl_old import kl_old

__all__ = ["ce", "hidden", "kl", "kl_first", "kl_old"]
