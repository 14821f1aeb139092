"""What of vLLM is called, done by transformers."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM


class LLMEngine:
    """Writes a token a step for each of the oldest requests. A request goes on for a step after it was aborted."""

    made: ClassVar[list["LLMEngine"]] = []

    def __init__(self, args: SimpleNamespace) -> None:
        self.args, self.open = args, True
        self.folder = Path(args.model)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, args.dtype)).eval()
        assert args.skip_tokenizer_init and not list(self.folder.glob("tokenizer*"))
        assert args.max_model_len <= self.model.config.get_text_config().max_position_embeddings
        self.engine_core = SimpleNamespace(shutdown=self.shutdown)
        self.requests: dict[str, SimpleNamespace] = {}
        self.aborted: set[str] = set()
        self.asked: list[SimpleNamespace] = []

    @classmethod
    def from_engine_args(cls, args: SimpleNamespace) -> "LLMEngine":
        cls.made.append(cls(args))
        return cls.made[-1]

    def add_request(self, request_id: str, prompt: dict[str, Any], params: SimpleNamespace) -> None:
        assert self.open and request_id not in self.requests
        assert 0 < len(prompt["prompt_token_ids"]) < self.args.max_model_len, "vLLM refuses longer ones"
        assert params.max_tokens >= 1 and params.output_kind == "delta" and params.ignore_eos and not params.detokenize
        assert len(vars(params).get("allowed_token_ids", [])) <= 1024, "its newer model runner dies of more"
        random = torch.Generator().manual_seed(params.seed) if params.temperature else None
        made = SimpleNamespace(ids=list(prompt["prompt_token_ids"]), params=params, n=0, random=random)
        self.requests[request_id] = made
        self.asked.append(params)

    @torch.no_grad()
    def step(self) -> list[SimpleNamespace]:
        assert self.requests, "with nothing to do, vLLM waits for ever"
        outputs = []
        for name, request in list(self.requests.items())[: self.args.max_num_seqs]:
            logits = self.model(torch.tensor([request.ids])).logits[0, -1].float()
            nats = logits.log_softmax(-1)
            chosen = self._choose(logits, request)
            request.ids.append(chosen)
            request.n += 1
            finished = request.n == request.params.max_tokens or len(request.ids) >= self.args.max_model_len
            logprobs = None
            if vars(request.params).get("logprobs") == -1:
                logprobs = [{index: SimpleNamespace(logprob=float(value)) for index, value in enumerate(nats)}]
            output = SimpleNamespace(token_ids=[chosen], logprobs=logprobs)
            outputs.append(SimpleNamespace(request_id=name, outputs=[output], finished=finished))
            if finished or name in self.aborted:
                del self.requests[name]
        return outputs

    @staticmethod
    def _choose(logits: torch.Tensor, request: SimpleNamespace) -> int:
        params = request.params
        if allowed := vars(params).get("allowed_token_ids"):
            kept = torch.full_like(logits, -torch.inf)
            kept[allowed] = logits[allowed]
            logits = kept
        if params.temperature == 0:
            return int(logits.argmax())
        p, ids = (logits / params.temperature).softmax(-1).sort(descending=True)
        p[p.cumsum(0) - p >= params.top_p] = 0
        return int(ids[torch.multinomial(p, 1, generator=request.random)])

    def abort_request(self, request_ids: Sequence[str]) -> None:
        assert not isinstance(request_ids, str)
        self.aborted.update(request_ids)

    def shutdown(self) -> None:
        self.open = False


def install(patch: pytest.MonkeyPatch) -> type[LLMEngine]:
    """Let ``import vllm`` give this one."""
    made = {name: ModuleType(name) for name in ("vllm", "vllm.inputs", "vllm.sampling_params")}
    vars(made["vllm"]).update(LLMEngine=LLMEngine, EngineArgs=SimpleNamespace, SamplingParams=SimpleNamespace)
    vars(made["vllm.inputs"]).update(tokens_input=lambda ids: {"type": "token", "prompt_token_ids": ids})
    vars(made["vllm.sampling_params"]).update(RequestOutputKind=SimpleNamespace(DELTA="delta"))
    for name, module in made.items():
        patch.setitem(sys.modules, name, module)
    patch.setattr(LLMEngine, "made", [])
    return LLMEngine
