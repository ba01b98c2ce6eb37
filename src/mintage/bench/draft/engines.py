"""Other people's engines on the embedded model's own file, beside the drafters: llama.cpp and OpenVINO GenAI.

Both read the file's Q4_1 blocks and compute in an arithmetic of their own, so that their texts may differ.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

import torch
from torch import Tensor

from mintage.bench.draft.arm import Arm
from mintage.draft import Stats, Target
from mintage.models import EMBEDDED, CausalLM, embedded_gguf
from mintage.progress import Note, unheard

__all__ = ["LLAMA_CPP", "OPENVINO", "OPENVINO_LOOKUP", "engine_arms"]

LLAMA_CPP = "llama.cpp (Q4_1)"
OPENVINO = "OpenVINO GenAI (Q4_1)"
OPENVINO_LOOKUP = "OpenVINO GenAI, its prompt lookup (Q4_1)"

_DRAFTED, _NGRAM = 5, 3
"""Tokens that OpenVINO's prompt lookup drafts, and the longest n-gram that it looks up: as in its own samples."""


def engine_arms(lm: CausalLM, note: Note = unheard) -> list[Arm]:
    """Make an arm for each engine that is installed; greedy decoding of the embedded model on the CPU alone.

    `note` is told how to install the others.
    """
    if lm.name != EMBEDDED or lm.model.device.type != "cpu":
        return []
    arms: list[Arm] = []
    for module, extra, make in (("llama_cpp", "llamacpp", _llama_cpp), ("openvino_genai", "openvino", _openvino)):
        if importlib.util.find_spec(module) is None:
            note(f"{module} is not measured beside: pip install 'mintage[{extra}]' (docs/draft.md says more)")
        else:
            arms += make(lm)
    return arms


def _llama_cpp(lm: CausalLM) -> Iterator[Arm]:
    import llama_cpp

    threads = torch.get_num_threads()
    model = llama_cpp.Llama(
        str(embedded_gguf()),
        n_ctx=Target(lm.model).positions,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )

    def tokens(ids: list[int], new: int) -> Iterable[int]:
        model.reset()  # else it keeps the rows of the last prompt's beginning
        return model.generate(ids, temp=0.0, repeat_penalty=1.0)

    note = (
        f"llama.cpp {llama_cpp.__version__} on {threads} threads: the same weights as shipped (Q4_1), "
        "activations in 8 bits; another quantisation and other arithmetic than the other arms"
    )
    yield _arm(lm, LLAMA_CPP, tokens, note)


def _openvino(lm: CausalLM) -> Iterator[Arm]:
    import openvino
    import openvino_genai as genai

    threads = torch.get_num_threads()
    note = (
        f"OpenVINO GenAI {version('openvino-genai')} on {threads} threads: the file that ships (Q4_1) in its own "
        "arithmetic; its text may differ"
    )
    for name, looking_up in ((OPENVINO, False), (OPENVINO_LOOKUP, True)):
        more = {"prompt_lookup": True} if looking_up else {}
        pipeline = genai.LLMPipeline(str(embedded_gguf()), "CPU", INFERENCE_NUM_THREADS=threads, **more)

        def tokens(ids: list[int], new: int, pipeline=pipeline, looking_up=looking_up) -> Iterable[int]:
            settings = genai.GenerationConfig(max_new_tokens=new, do_sample=False, apply_chat_template=False)
            if looking_up:
                settings.num_assistant_tokens, settings.max_ngram_size = _DRAFTED, _NGRAM
            return pipeline.generate(openvino.Tensor(torch.tensor([ids]).numpy()), settings).tokens[0]

        yield _arm(lm, name, tokens, note)


def _arm(lm: CausalLM, name: str, tokens: Callable[[list[int], int], Iterable[int]], note: str) -> Arm:
    """Make the arm of an engine that yields or returns new tokens; what it reads per forward is not known."""
    ends = lm.model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = {ends} if isinstance(ends, int) else set(ends or ())

    def decode(ids: Tensor, temperature: float, new: int, seed: int) -> tuple[Tensor, Stats]:
        emitted: list[int] = []
        for token in tokens(ids[0].tolist(), new):
            emitted.append(token)
            if token in ends or len(emitted) == new:
                break
        count = len(emitted)
        stats = Stats(prompt_tokens=ids.shape[1], new_tokens=count, rounds=count, target_forwards=count)
        return torch.tensor(emitted, dtype=torch.long), stats

    return Arm(name=name, decode=decode, fresh=lambda: decode, note=note)
