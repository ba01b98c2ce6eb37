"""Laws of the reduce contract. Each takes a reducer made by ``tiny()`` and fails by an assertion.

The models are random, have 4 layers of width 16, 2 heads of dimension 8, 16 patches (images of 16 pixels, patches of 4)
and 0, 1, 2 or 5 tokens before them: all supported families of transformers, and those of timm where it is installed. A
method with modules of its own makes them in `Reducer.fitted`, which is told these sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.core.attach import Attachment
from mintage.testing.refusals import refused, served
from mintage.testing.settings import a_wrong_setting_is_refused

__all__ = ["DEIT_S", "LAWS", "LawModel", "law_models", "merged_twins_change_nothing"]

_SIZE, _PATCHES, _IMAGES = 16, 16, 3

DEIT_S = Anatomy(layers=12, dim=384, hidden=1536, patches=196, prefix=1, heads=6)
"""A model of ordinary size, for what a method promises about its cost."""


@dataclass(frozen=True)
class LawModel:
    """A model of the laws, and how it is called.

    Parameters
    ----------
    model
        In evaluation mode.
    call
        Takes pixels, returns a tensor or a mapping of tensors.
    """

    model: nn.Module
    call: Callable[[Tensor], Any]

    def outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Every tensor that the model returns, by name."""
        out = self.call(pixels)
        return {"out": out} if isinstance(out, Tensor) else {k: v for k, v in out.items() if isinstance(v, Tensor)}


@cache
def law_models() -> dict[str, LawModel]:
    """Small random models of every supported kind, by name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = _transformers_models()
        if find_spec("timm") is not None:
            made |= _timm_models()
    return made


def _transformers_models() -> dict[str, LawModel]:
    hf: Any = import_module("transformers")
    sizes: dict[str, Any] = {
        "image_size": _SIZE,
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_labels": 5,
    }
    clip = sizes | {"intermediate_size": 32}
    dino = sizes | {"mlp_ratio": 2}
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    text: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 10,
        **special,
    }
    made: dict[str, nn.Module] = {
        "vit": hf.ViTForImageClassification(hf.ViTConfig(**clip)),
        "vit-eager": hf.ViTModel._from_config(hf.ViTConfig(**clip), attn_implementation="eager"),
        "deit": hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**clip)),
        "dinov2": hf.Dinov2Model(hf.Dinov2Config(**dino, use_swiglu_ffn=True)),
        "dinov2-classifier": hf.Dinov2ForImageClassification(hf.Dinov2Config(**dino)),
        "dinov2-registers": hf.Dinov2WithRegistersForImageClassification(
            hf.Dinov2WithRegistersConfig(**dino, num_register_tokens=4)
        ),
        "clip": hf.CLIPModel(hf.CLIPConfig(vision_config=clip, text_config=text, projection_dim=8)),
        "clip-classifier": hf.CLIPForImageClassification(
            hf.CLIPConfig(vision_config=clip, text_config=text, num_labels=5)
        ),
        "siglip": hf.SiglipVisionModel(hf.SiglipVisionConfig(**clip)),
        "siglip-classifier": hf.SiglipForImageClassification(
            hf.SiglipConfig(vision_config=clip, text_config=text, num_labels=5)
        ),
    }
    subjects = {}
    for name, model in made.items():
        held: Any = _filled(model)
        function = held.get_image_features if name == "clip" else held
        subjects[name] = LawModel(held, lambda pixels, function=function: function(pixel_values=pixels))
    return subjects


def _timm_models() -> dict[str, LawModel]:
    plain = import_module("timm.models.vision_transformer").VisionTransformer
    distilled = import_module("timm.models.deit").VisionTransformerDistilled
    sizes: dict[str, Any] = {
        "img_size": _SIZE,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 4,
        "num_heads": 2,
        "mlp_ratio": 2,
        "num_classes": 5,
    }
    made = {
        "timm-plain": plain(**sizes),
        "timm-distilled": distilled(**sizes),
        "timm-registers": plain(**sizes, reg_tokens=4, init_values=0.5),
        "timm-qk-norm": plain(**sizes, qk_norm=True, init_values=0.5),
        "timm-siglip": plain(**sizes, class_token=False, global_pool="map"),
        "timm-average": plain(**sizes, global_pool="avg"),
        "timm-average-of-patches": plain(**sizes, class_token=False, global_pool="avg"),
    }
    return {name: LawModel(model, model) for name, model in ((n, _filled(m)) for n, m in made.items())}


def _filled(model: nn.Module) -> nn.Module:
    """Draw every parameter, so that no layer scale, register or norm is neutral."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.3)
    return model.eval()


def _pixels(count: int = _IMAGES, size: int = _SIZE) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# -- what a reducer did ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    reducer: Reducer
    before: TokenState
    evidence: Evidence
    keep: int
    after: TokenState


class _Watched:
    """A reducer whose decisions are recorded."""

    def __init__(self, reducer: Reducer) -> None:
        self.reducer = reducer
        self.steps: list[_Step] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reducer, name)

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        after = self.reducer.reduce(state, evidence, keep)
        self.steps.append(_Step(self.reducer, state, evidence, keep, after))
        return after


@contextmanager
def _watching(reducer: Reducer, model: nn.Module) -> Iterator[tuple[Attachment, list[_Step]]]:
    with reducer(model, trace=True) as session:
        watched: Any = _Watched(session.reducer)
        session.reducer = watched
        yield session, watched.steps


def _each(reducer: Reducer) -> Iterator[tuple[str, LawModel]]:
    """Yield the models that the method serves: all, unless it says in one line why not; at least one."""
    return served(lambda subject: reducer(subject.model), law_models().items())


def _same(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, what: str) -> None:
    assert got.keys() == wanted.keys(), what
    for key, value in wanted.items():
        scale = max(value.abs().max().item(), 1.0)
        error = (got[key] - value).abs().max().item()
        assert error <= tolerance * scale, f"{what}: {key} is off by {error:.1e}"


# -- laws ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def keeping_everything_changes_nothing(reducer: Reducer) -> None:
    """With everything kept, every output of every model equals the unmodified one's to 1e-6."""
    for name, subject in _each(reducer.unreduced()):
        wanted = subject.outputs(_pixels())
        with reducer.unreduced()(subject.model) as session:
            got = subject.outputs(_pixels())
        assert set(session.tokens) == {_PATCHES + session.adapter.prefix}, name
        _same(got, wanted, 1e-6, name)


@torch.no_grad()
def as_many_stay_as_promised(reducer: Reducer) -> None:
    """After every layer as many patches are left as `kept` says, and the method does do something."""
    for name, subject in _each(reducer):
        with _watching(reducer, subject.model) as (session, steps):
            subject.outputs(_pixels())
            kept, prefix = session.reducer.kept(session.anatomy), session.adapter.prefix
        assert [n - prefix for n in session.tokens] == [_PATCHES, *kept[:-1]], name
        assert session.state is not None
        assert session.state.patches == kept[-1], name
        assert min(kept) >= 1, name
        assert steps or reducer.attends, f"{name}: nothing was reduced, so nothing was tested"
        for step in steps:
            assert step.after.patches == step.keep < step.before.patches, name
            assert step.after.size.shape == (_IMAGES, step.after.x.shape[1], 1), name
            assert torch.isfinite(step.after.x).all(), name


@torch.no_grad()
def prefix_tokens_are_untouched(reducer: Reducer) -> None:
    """Class, distillation and register tokens leave every reduction as they came, bit for bit, and stand for one."""
    for name, subject in _each(reducer):
        with _watching(reducer, subject.model) as (session, steps):
            subject.outputs(_pixels())
        prefix = session.adapter.prefix
        for step in steps:
            assert torch.equal(step.after.x[:, :prefix], step.before.x[:, :prefix]), name
            assert (step.after.size[:, :prefix] == 1).all(), name
            assert step.after.source is not None
            own = torch.eye(prefix, step.after.source.shape[2]).expand(_IMAGES, -1, -1)
            assert torch.equal(step.after.source[:, :prefix], own), name


@torch.no_grad()
def the_source_map_is_a_partition(reducer: Reducer) -> None:
    """Every input is in one token or, if dropped, in none; of a method that mixes, every token's shares sum to 1."""
    for name, subject in _each(reducer):
        with _watching(reducer, subject.model) as (session, steps):
            subject.outputs(_pixels())
        for step in steps:
            source = step.after.source
            assert source is not None
            assert (source >= 0).all(), name
            if reducer.mixes:
                assert torch.allclose(source.sum(2), torch.ones(source.shape[:2]), atol=1e-5), name
                continue
            assert ((source == 0) | (source == 1)).all(), name
            assert (source.sum(1) <= 1).all(), name
            assert (source.sum(2) >= 1).all(), f"{name}: a token stands for nothing"
            if reducer.conserves:
                assert (source.sum(1) == 1).all(), f"{name}: a method that conserves has dropped a patch"
            if step.after.positions is not None:
                placed = source.gather(2, step.after.positions[..., None]).squeeze(2)
                assert (placed == 1).all(), f"{name}: a token is not in its place"
        if not reducer.mixes and session.state is not None and session.state.source is not None:
            spread = session.unmerge(torch.ones_like(session.state.x))
            assert torch.allclose(spread, session.state.source.sum(1)[..., None].expand_as(spread)), name


@torch.no_grad()
def mass_is_conserved(reducer: Reducer) -> None:
    """Merges conserve the sum of sizes, each the number of a token's inputs, and the sum of size times token."""
    for name, subject in _each(reducer):
        with _watching(reducer, subject.model) as (session, steps):
            subject.outputs(_pixels())
        total = _PATCHES + session.adapter.prefix
        for step in steps:
            mass = step.after.size.sum((1, 2))
            assert (step.after.size > 0).all(), name
            if not reducer.conserves:
                continue
            assert torch.allclose(mass, torch.full_like(mass, total), rtol=1e-6), name
            assert step.after.source is not None
            assert torch.allclose(step.after.size.squeeze(2), step.after.source.sum(2)), name
            before, after = ((s.size * s.x).sum(1) for s in (step.before, step.after))
            assert torch.allclose(before, after, atol=1e-4), name


@torch.no_grad()
def an_image_does_not_depend_on_its_batch(reducer: Reducer) -> None:
    """Every image gives alone what it gives in a batch, and in another order."""
    for name, subject in _each(reducer):
        pixels = _pixels()
        with reducer(subject.model):
            together = subject.outputs(pixels)
            for i in range(len(pixels)):
                own = {k: v[i : i + 1] for k, v in together.items() if v.shape[:1] == (_IMAGES,)}
                alone = {k: v for k, v in subject.outputs(pixels[i : i + 1]).items() if k in own}
                _same(alone, own, 1e-5, name)
            turned = subject.outputs(pixels.flip(0))
        _same({k: v.flip(0) for k, v in turned.items()}, together, 1e-5, name)


@torch.no_grad()
def a_second_forward_gives_the_same(reducer: Reducer) -> None:
    """Nothing is left over from an earlier forward, be it of other images, or of images of another size."""
    for name, subject in _each(reducer):
        with reducer(subject.model):
            first = subject.outputs(_pixels())
            subject.outputs(_pixels(1).flip(2))
            second = subject.outputs(_pixels())
            assert all(torch.equal(first[k], second[k]) for k in first), name


@torch.no_grad()
def decisions_are_taken_in_float32(reducer: Reducer) -> None:
    """Under bfloat16 autocast a decision is the one that its evidence leads to in float32; sizes stay exact."""
    for name, subject in _each(reducer):
        with _watching(reducer, subject.model) as (session, steps):
            with torch.autocast("cpu", torch.bfloat16):
                out = subject.outputs(_pixels())
            prefix = session.adapter.prefix
            assert all(torch.isfinite(v).all() for v in out.values()), name
            for step in steps:
                assert step.after.size.dtype == torch.float32, name
                floats = {k: getattr(step.evidence, k) for k in ("query", "key", "value", "bias")}
                sharp = replace(step.evidence, **{k: None if v is None else v.float() for k, v in floats.items()})
                again = step.reducer.reduce(step.before, sharp, step.keep)
                assert again.source is not None
                assert step.after.source is not None
                if reducer.mixes:  # values, no decisions
                    assert torch.allclose(again.source, step.after.source, atol=1e-2), name
                else:
                    assert torch.equal(again.source, step.after.source), name
        if reducer.conserves and steps:
            assert (steps[-1].after.size.sum((1, 2)) == _PATCHES + prefix).all(), name


def gradients_reach_the_weights(reducer: Reducer) -> None:
    """In training mode every parameter in front of the output gets a finite gradient, the patch embedding too."""
    for name, subject in _each(reducer):
        model = copy.deepcopy(subject.model).train()
        call = LawModel(model, _rebound(subject, model))
        with reducer(model):
            sum((v.float() ** 2).sum() for v in call.outputs(_pixels()).values()).backward()  # type: ignore[union-attr]
        held = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert all(torch.isfinite(g).all() for g in held.values()), name
        reached = {n for n, g in held.items() if g.abs().max() > 0}
        assert any("patch_embed" in n and n.endswith("weight") for n in reached), name
        assert any("q_proj" in n or "qkv" in n for n in reached), name
        assert any("mlp" in n for n in reached), name


def _rebound(subject: LawModel, model: nn.Module) -> Any:
    held: Any = model
    if hasattr(held, "get_image_features"):
        return lambda pixels: held.get_image_features(pixel_values=pixels)
    return held if hasattr(held, "patch_embed") else lambda pixels: held(pixel_values=pixels)


@torch.no_grad()
def leaving_restores_model_and_registries(reducer: Reducer) -> None:
    """After the context, also after an exception, the model, its weights and transformers' registries are as before."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    for name, subject in _each(reducer):
        wanted, before = subject.outputs(_pixels()), _trace(subject.model)
        weights = {k: v.clone() for k, v in subject.model.state_dict().items()}
        registries = set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping)
        for fail in (False, True):
            try:
                with reducer(subject.model):
                    assert subject.model.state_dict().keys() == weights.keys(), name
                    subject.outputs(_pixels())
                    if fail:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                pass
            assert _trace(subject.model) == before, name
            assert (set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping)) == registries
            assert all(torch.equal(v, weights[k]) for k, v in subject.model.state_dict().items()), name
        got = subject.outputs(_pixels())
        assert all(torch.equal(got[k], wanted[k]) for k in wanted), name


def _trace(model: Any) -> Any:
    modules = {
        name: (type(m), sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks), m.training)
        for name, m in model.named_modules()
    }
    return modules, getattr(getattr(model, "config", None), "_attn_implementation", None)


def a_share_of_the_multiply_adds_is_met(reducer: Reducer) -> None:
    """`at` sets the method to a share of the multiply-adds within 2 points, or says in one line that it cannot."""
    if reducer.fixed:
        refused(lambda: reducer.at(0.65, DEIT_S))
        return
    for share in (0.8, 0.65, 0.5):
        kept = reducer.at(share, DEIT_S).kept(DEIT_S)
        reached = DEIT_S.macs(kept, hook=reducer.hook) / DEIT_S.full
        assert abs(reached - share) < 0.02, f"asked for {share}, got {reached:.3f}"
    assert DEIT_S.macs(reducer.unreduced().kept(DEIT_S), hook=reducer.hook) == DEIT_S.full


def a_second_reducer_and_other_models_are_refused(reducer: Reducer) -> None:
    """A second reducer, and a model that is no vision transformer: one line each, and the first goes on working."""
    name, subject = next(_each(reducer))
    with reducer(subject.model) as session:
        refused(lambda: reducer(subject.model).__enter__(), lambda: reducer(nn.Linear(2, 2)))
        with torch.no_grad():
            subject.outputs(_pixels())
        assert session.state is not None, name


# -- a law of adapters -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Twins(Reducer):
    """Merges each patch with its neighbour, behind the second layer's attention."""

    conserves = True

    @property
    def proportional(self) -> bool:
        return True

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        return (anatomy.patches, *[anatomy.patches // 2] * (anatomy.layers - 1))

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        return state.merge((torch.arange(state.patches) // 2).expand(len(state.x), -1), keep)

    @classmethod
    def tiny(cls) -> _Twins:
        return cls()


@torch.no_grad()
def merged_twins_change_nothing(subject: LawModel) -> None:
    """Where equal tokens merge, attention and pooling that count them by size give what the unmodified model gives."""
    model = copy.deepcopy(subject.model)
    for name, parameter in model.named_parameters():
        if "position" in name or "pos_embed" in name:
            parameter.zero_()
    call = LawModel(model, _rebound(subject, model))
    pixels = _pixels().unflatten(3, (_SIZE // 8, 2, 4))[..., :1, :].expand(-1, -1, -1, -1, 2, -1).flatten(3)
    with _Twins()(model) as session:
        got = {k: v for k, v in call.outputs(pixels).items() if session.dense or v.ndim == 2}
    wanted = {k: v for k, v in call.outputs(pixels).items() if k in got}
    assert session.tokens[-1] - session.adapter.prefix == _PATCHES // 2
    assert wanted
    _same(got, wanted, 1e-5, type(model).__name__)


LAWS = (
    keeping_everything_changes_nothing,
    as_many_stay_as_promised,
    prefix_tokens_are_untouched,
    the_source_map_is_a_partition,
    mass_is_conserved,
    an_image_does_not_depend_on_its_batch,
    a_second_forward_gives_the_same,
    decisions_are_taken_in_float32,
    gradients_reach_the_weights,
    leaving_restores_model_and_registries,
    a_share_of_the_multiply_adds_is_met,
    a_second_reducer_and_other_models_are_refused,
    a_wrong_setting_is_refused,
)
