"""The student: the frozen original model with its new rows beside it, which is its own teacher."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from kldistill.model.load import load_original, vocabulary_size
from kldistill.rows.rows import Rows
from kldistill.runtime.errors import ModelError


class Student(nn.Module):
    """One model with two vocabularies: the old one makes it the teacher, the old and the new the student.

    Nothing of the model is copied, changed or trainable, until a caller unfreezes some of it
    (``kldistill.training.adapters``). From then on the model is the student's alone, and what remains of the teacher
    are its stored states and its head. Sequences are causal and padded on the right, so a real position never sees a
    padded one: no attention mask is needed, and positions count from 0 in every row.

    Args:
        teacher_head: the original model's head where the model's own was or will be trained; None where it is that
            head still.

    Raises ``ModelError`` at construction when the body and the head, as used here, do not give the model's own logits.
    """

    def __init__(
        self, model: PreTrainedModel, rows: Rows, old_size: int, teacher_head: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.old_size = old_size
        self.body = body_of(model)
        self.embedding = embedding_of(model)
        self.rows = rows.to(self.embedding.weight.device)
        self.lm_head = head_of(model)
        self.teacher_head = teacher_head
        self.body_learns = False  # whether the body is in training mode (dropout) when the student is
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later
        # Cohere multiplies its logits, Granite divides them.
        self.logit_scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.embed_scale = float(getattr(self.embedding, "scalar_embed_scale", 1.0))  # Gemma's embedding module
        self._check(config.model_type)

    @property
    def new_size(self) -> int:
        """W: old and new tokens."""
        return self.old_size + self.rows.input.shape[0]

    def train(self, mode: bool = True) -> "Student":
        """The body follows ``mode`` only if it learns: a frozen one never drops out, it is the teacher too."""
        super().train(mode)
        self.model.train(mode and self.body_learns)
        return self

    def head_parameters(self) -> list[Tensor]:
        """What ``logits`` uses beside its argument and a gradient is asked for."""
        used = (self.rows.head, self.lm_head.weight, self.lm_head.bias)
        return [tensor for tensor in used if tensor is not None and tensor.requires_grad]

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Input embeddings of old and new ids, with the family's scale.

        Gradients reach ``rows.input``, and the embedding where that is trained.
        """
        new = ids >= self.old_size
        old_BTD = self.embedding(ids.masked_fill(new, 0))
        rows_ND = self.rows.input.to(old_BTD.dtype)
        if rows_ND.shape[0] == 0:
            return old_BTD
        new_BTD = F.embedding((ids - self.old_size).clamp(min=0), rows_ND)
        if self.embed_scale != 1.0:
            # The module rounds its factor to the weights' type before it multiplies; so must this.
            new_BTD = new_BTD * torch.tensor(self.embed_scale, dtype=new_BTD.dtype, device=new_BTD.device)
        return torch.where(new.unsqueeze(-1), new_BTD, old_BTD)

    def hidden(self, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"] | None = None) -> Float[Tensor, "B T D"]:
        """Last hidden states after the final norm, for old and new ids alike; what stands at padding means nothing.

        ``mask`` is 1 at real tokens. It is only checked (padding must be on the right), as causal attention never
        looks there. For the teacher call it with old ids, under ``torch.no_grad()``.
        """
        if mask is not None and mask.device.type == "cpu":  # another device would have to be waited for
            assert bool((mask[:, 1:] <= mask[:, :-1]).all()), "padding must be on the right"
        return self.body(inputs_embeds=self.embed(ids), use_cache=False).last_hidden_state

    def logits_old(
        self, hidden: Float[Tensor, "P D"], ids_S: Int[Tensor, " S"] | None = None
    ) -> Float[Tensor, "P V"] | Float[Tensor, "P S"]:
        """The teacher's logits: the original head over the old vocabulary; padded rows of the matrix are left out.

        ``hidden`` are states of the original model. Those that were stored in float32 come back into the type of the
        weights. ``ids_S`` asks for those old tokens alone.
        """
        return self._over_old(hidden, self.lm_head if self.teacher_head is None else self.teacher_head, ids_S)

    def logits(
        self, hidden: Float[Tensor, "P D"], ids_S: Int[Tensor, " S"] | None = None
    ) -> Float[Tensor, "P W"] | Float[Tensor, "P S+N"]:
        """The student's logits over old tokens (all, or ``ids_S``) and new ones. Gradients reach ``hidden`` and
        ``head_parameters``.
        """
        hidden = hidden.to(self.lm_head.weight.dtype)
        return torch.cat([self._over_old(hidden, self.lm_head, ids_S), self.logits_new(hidden, self.rows.head)], dim=-1)

    def logits_new(self, hidden: Float[Tensor, "P D"], output: Float[Tensor, "N D"]) -> Float[Tensor, "P N"]:
        """The logits that output rows of new tokens give, the family's scale and cap included."""
        hidden = hidden.to(self.lm_head.weight.dtype)
        new_PN = F.linear(hidden, output.to(hidden.dtype))
        if self.lm_head.bias is not None:
            new_PN = new_PN + new_bias(self.lm_head.bias, self.old_size)
        return self._finish(new_PN)

    def _over_old(self, hidden: Tensor, head: nn.Linear, ids_S: Tensor | None = None) -> Tensor:
        which = slice(self.old_size) if ids_S is None else ids_S
        weight = head.weight[which]
        bias = None if head.bias is None else head.bias[which]
        return self._finish(F.linear(hidden.to(weight.dtype), weight, bias))

    def _finish(self, logits: Tensor) -> Tensor:
        """What the family does to its logits after the head."""
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    @torch.no_grad()
    def _check(self, family: str) -> None:
        """Body, head and embedding scale must reproduce the model on a handful of ids."""
        height = self.embedding.weight.shape[0]
        if height < self.old_size:
            raise ModelError(
                f"{family}: the embedding has {height} rows, the tokenizer {self.old_size} ids; resize the model first."
            )
        device = self.embedding.weight.device
        ids = torch.linspace(0, self.old_size - 1, min(8, self.old_size), device=device).long().unsqueeze(0)
        # bfloat16 keeps 8 bits of a number: the two ways may then differ in the last of them.
        tolerance = 1e-3 if self.embedding.weight.dtype == torch.float32 else 0.05
        rows = self.embedding.weight[ids] * torch.tensor(self.embed_scale, dtype=self.embedding.weight.dtype)
        scaled = torch.allclose(self.embedding(ids), rows, rtol=tolerance, atol=tolerance)
        theirs = self.model(ids, use_cache=False).logits[..., : self.old_size]
        ours = self._over_old(self.hidden(ids), self.lm_head)
        if not scaled or not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
            worst = (ours - theirs).abs().max().item()
            raise ModelError(
                f"{family}: its logits are not what embedding, body and head give by themselves (they differ by up to "
                f"{worst:.2g}); this family cannot be extended by kldistill yet."
            )


def body_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head. Raises ``ModelError``."""
    body = model.base_model
    if body is model:
        raise ModelError(f"{type(model).__name__}: transformers names no body without the head (base_model_prefix).")
    return body


def layers_of(body: nn.Module) -> list[nn.Module]:
    """The layers of a body that transformers marks as such; none where it marks none."""
    return [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """The input embedding. Raises ``ModelError`` when it is no plain matrix."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(f"{type(model).__name__}: its input embedding is a {type(embedding).__name__}, no matrix.")
    return embedding


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The output head. Raises ``ModelError`` when it is no linear layer."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{type(model).__name__}: its head is a {type(head).__name__}, no linear layer.")
    return head


def new_bias(bias: Float[Tensor, " H"], old_size: int) -> Float[Tensor, ""]:
    """The bias of every new token where a head has one: the mean of the old ones, and never trained."""
    return bias[:old_size].mean()


def bare(folder: Path, device: torch.device | str = "cpu") -> Student:
    """The original model alone: a student with no new tokens."""
    model = load_original(folder, device)
    size = vocabulary_size(folder)
    return Student(model, Rows(torch.zeros(0, embedding_of(model).embedding_dim)), size).to(device)
