"""Text from vLLM, with the prompts, budgets and stop strings of ``batching.generate``, whose place it takes.

vLLM knows neither tokenizer nor text here: it is asked for ids, and every id is added to the same ``Row`` that the
other decoder fills, which spells the prompt's end again and says when the completion ends. Then the request is
aborted. A token that only some ids may be, as part of the prompt's end, is a request for one token; so what follows is
another one, whose beginning vLLM finds in its cache. Requests and nothing but documented sampling parameters make this
work with every model runner that vLLM has; logits processors would need one kind for each.
"""

import gc
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from kldistill.evaluation.config import VllmConfig
from kldistill.evaluation.generation.batching import (
    Completion,
    Request,
    completion_of,
    eos_of,
    prompts_of,
    rows_of,
)
from kldistill.evaluation.generation.cuts import Merging
from kldistill.evaluation.generation.decoding import GREEDY, Decoding, Row, most_tokens
from kldistill.evaluation.generation.sampling import draw
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.model.save import save_model
from kldistill.rows.student import embedding_of
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ConfigError, EvaluationError
from kldistill.runtime.processes import launched
from kldistill.runtime.progress import Bar
from kldistill.tokens.windows import context_length

ALLOWED = 1024  # ids of ``allowed_token_ids``, at most: vLLM's newer model runner dies of more
AHEAD = 2  # times the batch: requests that vLLM has at a time, so that one always waits for the next place
PROBE = "from vllm.platforms import current_platform; print(current_platform.device_type)"
NAMES = "import dataclasses, vllm; print(*(item.name for item in dataclasses.fields(vllm.EngineArgs)))"


def check(runtime: RuntimeConfig, settings: VllmConfig) -> None:
    """Refuse what would fail when the first answer is due. Takes seconds: vLLM is imported, in a process of its own.

    Raises:
        ConfigError: vLLM cannot be imported, is made for another device or lacks a setting, there are fewer GPUs than
            it is to use, or the run has several processes.
    """
    key = "eval.backend=vllm"
    if launched() > 1:
        raise ConfigError(
            f"{key}: a run of {launched()} processes has no place for vLLM, which starts its own. Launch one process, "
            "or use eval.backend=transformers."
        )
    device = _printed(PROBE)[-1]
    if runtime.device not in ("auto", device):
        raise ConfigError(
            f"{key} with runtime.device={runtime.device}: the vLLM that is installed runs on {device}. Use "
            f"runtime.device={device} or auto, or eval.backend=transformers."
        )
    wide, deep = settings.tensor_parallel_size or 1, settings.pipeline_parallel_size or 1
    there = torch.cuda.device_count()
    if device == "cuda" and wide * deep > max(1, there):
        raise ConfigError(
            f"eval.vllm.tensor_parallel_size={wide} times eval.vllm.pipeline_parallel_size={deep} are {wide * deep} "
            f"GPUs, and {there} are visible here."
        )
    chosen = settings.chosen()
    known = set(_printed(NAMES)) if chosen else set[str]()
    for name in chosen:
        if name not in known:
            raise ConfigError(f"eval.vllm.{name}: the vLLM that is installed has no such setting; leave it at null.")


def _printed(code: str) -> list[str]:
    """The words that Python prints for ``code``, which imports vLLM. Raises ``ConfigError`` where it cannot."""
    probe = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["its import ends the process"])[-1]
        raise ConfigError(
            f"eval.backend=vllm: vLLM cannot be imported here ({reason}). Install it with `pip install "
            "'kldistill[vllm]'` (see docs/serving.md for the versions of torch and transformers that it asks for), or "
            "use eval.backend=transformers."
        )
    return probe.stdout.split()


def generate(
    model: PreTrainedModel,
    spelling: Spelling,
    requests: Sequence[Request],
    decoding: Decoding = GREEDY,
    *,
    batch_size: int,
    description: str = "Generating",
    engine_args: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, list[Completion]]]:
    """Complete every request; see ``batching.generate``, which gives the same greedy completions up to rounding.

    Samples are drawn from the same distribution with other random numbers, and the same key gives the same ones again.
    Where the model's context is full, a completion has one token less.

    Args:
        model: on the CPU. It is written to a temporary folder, for vLLM to read, and let go of.
        decoding: whose ``cut`` is none or ``Merging``.
        batch_size: completions that vLLM writes at a time.
        engine_args: what else vLLM is started with (``VllmConfig.chosen``).

    Raises:
        EvaluationError: a prompt is longer than the model's context, or vLLM cannot start with this model, or ends
            while it writes.
    """
    prompts = prompts_of(spelling, requests, context_length(model.config))
    eos = eos_of(model, spelling)
    asked = (len(prompt.ids) + most_tokens(requests[prompt.index].budget) for prompt in prompts)
    length = int(min(context_length(model.config), max(asked, default=0)))
    dtype = str(model.dtype).removeprefix("torch.")
    with TemporaryDirectory(prefix="kldistill-vllm-") as folder:
        write(model, len(spelling.table), Path(folder))
        del model
        engine = Engine(folder, dtype, length, batch_size, engine_args or {})
    rows = {prompt.index: rows_of(requests[prompt.index], prompt, decoding.seed) for prompt in prompts}
    waiting = deque(
        row for prompt in sorted(prompts, key=lambda prompt: -len(prompt.ids)) for row in rows[prompt.index]
    )
    try:
        with Bar(description, total=len(requests), unit="tasks") as bar:
            for row in _finished(engine, spelling, waiting, eos, decoding, length, AHEAD * batch_size):
                samples = rows[row.request]
                if all(sample.ended for sample in samples):
                    bar.advance(1)
                    yield row.request, [completion_of(sample, prompts[row.request]) for sample in samples]
    finally:
        engine.close()


def write(model: PreTrainedModel, size: int, folder: Path) -> None:
    """Write weights and configuration for vLLM; rows beyond ``size`` go, as nothing may choose them."""
    if embedding_of(model).weight.shape[0] > size:
        model.resize_token_embeddings(size, mean_resizing=False)
    save_model(model, folder)


class Engine:
    """vLLM itself, with the model of a folder, which is read at the start alone."""

    def __init__(self, folder: str, dtype: str, length: int, batch_size: int, engine_args: Mapping[str, Any]) -> None:
        # Unless the user says otherwise: vLLM reports its use to its makers, and tells of much.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        gc.collect()
        torch.cuda.empty_cache()  # what stages before this one held; vLLM takes what is free
        try:
            import vllm  # type: ignore[import-not-found]
            from vllm.inputs import tokens_input  # type: ignore[import-not-found]
            from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

            self._engine = vllm.LLMEngine.from_engine_args(
                vllm.EngineArgs(
                    model=folder,
                    skip_tokenizer_init=True,
                    dtype=dtype,
                    max_model_len=length,
                    max_num_seqs=batch_size,
                    max_logprobs=-1,
                    generation_config="vllm",
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    **engine_args,
                )
            )
        except Exception as error:
            raise EvaluationError(
                f"eval.backend=vllm: vLLM cannot start with this model: {reason_of(error)} "
                "(VLLM_LOGGING_LEVEL=INFO shows more.) Use eval.backend=transformers."
            ) from error
        self._params, self._delta, self._input = vllm.SamplingParams, RequestOutputKind.DELTA, tokens_input

    def add(self, name: str, ids: Sequence[int], settings: Mapping[str, Any]) -> None:
        """Ask for what follows ``ids``."""
        params = self._params(output_kind=self._delta, detokenize=False, ignore_eos=True, **settings)
        self._engine.add_request(name, self._input(list(ids)), params)

    def step(self) -> Iterator[tuple[str, Any, bool]]:
        """Of every request that has got on: its name, what is new, and whether it is finished.

        Raises:
            EvaluationError: vLLM, or the process in which it runs the model, has ended.
        """
        try:
            outputs = self._engine.step()
        except Exception as error:
            raise EvaluationError(
                f"eval.backend=vllm: vLLM ended while it wrote: {reason_of(error)} "
                "(VLLM_LOGGING_LEVEL=INFO shows more.) What is answered is kept, and the same command goes "
                "on; eval.backend=transformers begins anew."
            ) from error
        for output in outputs:
            yield output.request_id, output.outputs[0], output.finished

    def abort(self, name: str) -> None:
        """End a request."""
        self._engine.abort_request([name])

    def close(self) -> None:
        """Give back the device."""
        self._engine.engine_core.shutdown()


def reason_of(error: Exception) -> str:
    """The first line that an error of vLLM's says, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _finished(
    engine: Engine,
    spelling: Spelling,
    waiting: deque[Row],
    eos: set[int],
    decoding: Decoding,
    length: int,
    most: int,
) -> Iterator[Row]:
    """The rows, as they are finished, ``most`` of them at a time with the engine."""
    running: dict[str, Row] = {}
    n = 0
    begun = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < most:
            running[f"{n}"] = row = waiting.popleft()
            engine.add(f"{n}", row.before, settings(row, spelling, decoding))
            n += 1
        # What was asked for and is not wanted any more comes for a while.
        new = [(name, *rest) for name, *rest in engine.step() if name in running]
        if not new:
            continue
        now = time.perf_counter()
        seconds, begun = (now - begun) / len(new), now
        for name, output, over in new:
            row = running[name]
            row.seconds += seconds
            goes_on = take(row, output, spelling, eos, decoding)
            full = len(row.before) + len(row.ids) >= length
            if goes_on and not over:
                continue
            del running[name]
            if not over:
                engine.abort(name)
            if full and not row.ended:
                row.ended = "budget"
            if row.ended:
                yield row
                begun = time.perf_counter()
            else:
                running[f"{n}"] = row
                engine.add(f"{n}", [*row.before, *row.ids], settings(row, spelling, decoding))
                n += 1


def settings(row: Row, spelling: Spelling, decoding: Decoding) -> dict[str, Any]:
    """vLLM's sampling parameters for what a row needs next: one token that spells the prompt's end again, or all that
    the row has room for.
    """
    how: dict[str, Any] = {"temperature": decoding.temperature}
    if decoding.temperature:
        how |= {"top_p": decoding.top_p, "seed": row.chance.getrandbits(31)}
    if not row.rest:
        return {**how, "max_tokens": max(1, most_tokens(row.budget) - len(row.ids))}
    ids = allowed(spelling, row.rest)
    if len(ids) <= ALLOWED:
        return {**how, "max_tokens": 1, "allowed_token_ids": ids}
    return {"temperature": 0.0, "max_tokens": 1, "logprobs": -1}  # of all ids: ``take`` chooses


def allowed(spelling: Spelling, rest: bytes) -> list[int]:
    """The ids that may come next where ``rest`` is to be spelt first, from the lowest on."""
    return spelling.allowed(rest).nonzero().flatten().tolist()


def take(row: Row, output: Any, spelling: Spelling, eos: set[int], decoding: Decoding) -> bool:
    """Add what vLLM has written to a row, up to its end.

    Args:
        output: has ``token_ids``, and ``logprobs`` of all ids where ``settings`` asked for these.

    Returns:
        Whether what vLLM goes on with is what the row goes on with. It is not once the row has ended, or a new token
        has taken the place of its pieces.
    """
    ids = [choose(output.logprobs[0], row, spelling, decoding)] if output.logprobs else output.token_ids
    for index in ids:
        row.take(index, spelling.table[index], index in eos)
        merged = isinstance(decoding.cut, Merging) and row.merge(decoding.cut) is not None
        if row.ended or merged:
            return False
    return True


def choose(logprobs: Mapping[int, Any], row: Row, spelling: Spelling, decoding: Decoding) -> int:
    """The likeliest of the ids that may come next, or one drawn from them.

    Args:
        logprobs: of each id something whose ``logprob`` is its log-probability.
    """
    ids = allowed(spelling, row.rest)
    nats = torch.tensor([[logprobs[index].logprob for index in ids]])
    if decoding.temperature == 0:
        return ids[int(nats.argmax())]
    return ids[int(draw(nats / decoding.temperature, decoding.top_p, row.uniform(1)))]
