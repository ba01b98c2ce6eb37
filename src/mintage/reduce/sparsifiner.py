"""Sparsifiner: every query reads a few keys, which a small predictor picks for each image; all tokens stay.

Wei, Duke et al., CVPR 2023, arXiv 2303.13755. A *connectivity predictor* guesses each layer's attention matrix as a
product of low rank, from queries and keys of fewer channels. The largest entries of every row become a mask, and
attention is evaluated there. Predictors are trained first, on the attention of the transformer itself; then the
transformer is tuned under the masks (``mintage train sparsifiner``).

The sparsity has no structure: it saves multiply-adds (`mhsa_macs`), not by itself seconds. Like the released code, the
``"masked"`` backend computes all scores; ``"gather"`` computes those that are read and moves the keys for it.

Tokens may be pruned as well: where the authors zero a token's rows and hide its column, it leaves here, to the same
effect.

Not here: training (`mintage.reduce.training.sparsifiner`), dropout of attention, other image sizes than the predictors
were trained on (one row of their weights belongs to one token).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.core.artefact import Artefact, Imprint, shipped

__all__ = [
    "Connectivity",
    "ConnectivityPredictor",
    "Sparsifiner",
    "connectivity_mask",
    "gather_attention",
    "masked_attention",
    "mhsa_macs",
    "reconstruction_loss",
    "sparse_attention",
]

_FORMAT = "mintage sparsifiner 1"
_AGAIN = "mintage train sparsifiner"

Backend = Literal["masked", "gather"]


# -- the predictor -------------------------------------------------------------------------------------------------


class ConnectivityPredictor(nn.Module):
    """Guess the attention of one layer's patch queries; all its heads share the weights (section 3.2).

    Parameters
    ----------
    head_dim, num_tokens, num_heads
        Of the layer; the prefix is counted.
    prefix
        Leading tokens whose queries read everything and are not guessed.
    reduce_tokens
        The rank is ``num_tokens // reduce_tokens``.
    reduce_channels
        Queries and keys are projected to ``head_dim // reduce_channels`` channels.
    coef_topk
        Coefficients kept per query; 0 keeps those above `coef_threshold`.
    coef_threshold
        See `coef_topk`.
    basis_threshold
        Entries of the basis up to this size become 0.
    scale
        Factor of the coefficients' logits; None takes ``num_heads ** -0.5``, as the released code does (perhaps a slip
        for the root of the channels).
    """

    def __init__(
        self,
        head_dim: int,
        num_tokens: int,
        num_heads: int,
        *,
        prefix: int = 1,
        reduce_tokens: int = 6,
        reduce_channels: int = 2,
        coef_topk: int = 8,
        coef_threshold: float = 0.05,
        basis_threshold: float = 0.02,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        channels, low = max(head_dim // reduce_channels, 1), max(num_tokens // reduce_tokens, 1)
        self.prefix, self.coef_topk, self.coef_threshold = prefix, coef_topk, coef_threshold
        self.basis_threshold = basis_threshold
        self.scale = num_heads**-0.5 if scale is None else scale
        self.query, self.key = nn.Linear(head_dim, channels), nn.Linear(head_dim, channels)
        self.down, self.up = (nn.Parameter(torch.empty(num_tokens, low)) for _ in range(2))
        for weight in (self.query.weight, self.key.weight, self.down, self.up):
            nn.init.trunc_normal_(weight, std=0.02)
        for linear in (self.query, self.key):
            nn.init.zeros_(linear.bias)

    def approximate(
        self,
        query: Float[Tensor, "batch heads tokens head_dim"],
        key: Float[Tensor, "batch heads tokens head_dim"],
        *,
        dense: bool = False,
        places: Int[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads patches low"], Float[Tensor, "batch heads patches tokens"]]:
        """Return the coefficients and the guessed attention.

        Parameters
        ----------
        query, key
            The layer's own.
        dense
            Keep every coefficient and the signs of the basis: what the reconstruction is trained with.
        places
            Which tokens these are, where some were pruned.
        """
        down, up = self.down, self.basis(dense)
        if places is not None:
            down, up = down[places][:, None], up[places][:, None]
        low = self.key(key).transpose(2, 3) @ down
        coef = (self.scale * (self.query(query[:, :, self.prefix :]) @ low)).float().softmax(-1)
        if not dense:
            coef = self._sparse(coef)
        return coef, coef @ up.float().transpose(-1, -2)

    def basis(self, dense: bool = False) -> Float[Tensor, "tokens low"]:
        """Return the rows that coefficients combine: without signs and small entries, or as they are."""
        if dense:
            return self.up
        size = self.up.abs()
        return torch.where(size > self.basis_threshold, size, 0.0)

    def _sparse(self, coef: Tensor) -> Tensor:
        if not self.coef_topk:
            return torch.where(coef > self.coef_threshold, coef, 0.0)
        best = coef.topk(min(self.coef_topk, coef.shape[-1]))
        return torch.zeros_like(coef).scatter(-1, best.indices, best.values)


def reconstruction_loss(
    approx: Float[Tensor, "batch heads patches tokens"], attention: Float[Tensor, "batch heads patches tokens"]
) -> Float[Tensor, ""]:
    """Sum of squared differences to the true attention of the same queries (section 3.3); it grows with everything."""
    return (approx - attention).square().sum()


def _budget(keep_rate: float, tokens: int) -> int:
    return math.ceil(keep_rate * tokens)


def connectivity_mask(
    approx: Float[Tensor, "batch heads patches tokens"],
    keep_rate: float = 0.25,
    *,
    threshold: float | None = None,
    tokens: int | None = None,
) -> Bool[Tensor, "batch heads tokens tokens"]:
    """Return which keys each query reads; the prefix, whose queries are not in `approx`, reads all.

    Parameters
    ----------
    approx
        Guessed attention.
    keep_rate
        Every patch reads ``ceil(keep_rate * tokens)`` keys.
    threshold
        Read what is above it instead, be it many or none.
    tokens
        How many there were before any was pruned; default those in `approx`.
    """
    count = approx.shape[-1]
    if threshold is not None:
        mask = approx > threshold
    else:
        index = _best(approx, keep_rate, tokens)
        mask = torch.zeros_like(approx, dtype=torch.bool).scatter(-1, index, True)
    return functional.pad(mask, (0, 0, count - approx.shape[2], 0), value=True)


def _best(approx: Tensor, keep_rate: float, tokens: int | None) -> Int[Tensor, "batch heads patches budget"]:
    count = approx.shape[-1]
    return approx.topk(min(_budget(keep_rate, tokens or count), count), sorted=False).indices


# -- sparse attention ----------------------------------------------------------------------------------------------


def masked_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    value: Float[Tensor, "batch heads tokens value"],
    mask: Bool[Tensor, "batch heads tokens tokens"],
    scaling: float,
) -> Float[Tensor, "batch heads tokens value"]:
    """Attend where the mask allows, by torch's fused kernel over all scores; a query that may read nothing gets 0."""
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return torch.where(mask.any(-1, keepdim=True), out, 0.0)


def gather_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    value: Float[Tensor, "batch heads tokens value"],
    index: Int[Tensor, "batch heads patches budget"],
    scaling: float,
) -> Float[Tensor, "batch heads tokens value"]:
    """Attend to the keys that `index` names, the last queries; those before them read everything."""
    batch, heads, tokens, _ = key.shape
    first = tokens - index.shape[2]
    rows = index + tokens * torch.arange(batch * heads, device=index.device).view(batch, heads, 1, 1)
    keys, values = (functional.embedding(rows, x.flatten(0, 2)) for x in (key, value))
    scores = keys @ query[:, :, first:, :, None] * scaling
    weights = scores.softmax(3, dtype=torch.promote_types(scores.dtype, torch.float32))
    out = (weights.to(value.dtype).transpose(3, 4) @ values).squeeze(3)
    if not first:
        return out
    dense = functional.scaled_dot_product_attention(query[:, :, :first], key, value, scale=scaling)
    return torch.cat([dense, out], 2)


def sparse_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    value: Float[Tensor, "batch heads tokens value"],
    mask: Bool[Tensor, "batch heads tokens tokens"],
    backend: Backend = "masked",
    scaling: float | None = None,
) -> Float[Tensor, "batch heads tokens value"]:
    """Attend where the mask allows.

    Parameters
    ----------
    query, key, value
        Of one layer.
    mask
        True where a query (row) reads a key.
    backend
        ``"gather"`` needs a mask whose rows are full up to some row, and from there on all equally filled.
    scaling
        Factor of the scores; default ``dim ** -0.5``.

    Raises
    ------
    UserError
        An unknown backend, or a mask that ``"gather"`` cannot serve.
    """
    scaling = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    if backend == "masked":
        return masked_attention(query, key, value, mask, scaling)
    if backend != "gather":
        raise UserError(f"unknown backend {backend!r}; known: masked, gather")
    filled = mask.sum(-1).flatten(0, 1)
    full = (filled == mask.shape[-1]).all(0).long().cumprod(0).sum().item()
    rest = filled[:, int(full) :]
    if rest.numel() and rest.min() != rest.max():
        raise UserError("backend gather needs as many keys in every row; use backend=masked with a threshold")
    if not rest.numel():
        return functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    index = mask[:, :, int(full) :].nonzero()[:, -1].view(*mask.shape[:2], rest.shape[1], -1)
    return gather_attention(query, key, value, index, scaling)


def mhsa_macs(
    *, tokens: int, dim: int, heads: int, read: int, channels: int = 0, low: int = 0, prefix: int = 1,
    coefficients: int = 8, basis: float = 0.0
) -> int:  # fmt: skip
    """Multiply-adds of one layer's attention block for one image, as the paper counts them; not what any backend runs.

    Parameters
    ----------
    tokens, dim, heads, prefix
        Of the layer.
    read
        Keys that one head reads over all queries, i.e. the ones in its mask; ``tokens ** 2`` is dense attention.
    channels, low
        Of the predictor; 0 for none.
    coefficients
        Kept per query.
    basis
        Entries that are not 0, per column of the basis.
    """
    head_dim, patches = dim // heads, tokens - prefix
    predictor = 2 * tokens * head_dim * channels + channels * tokens * low + patches * channels * low
    predictor += round(patches * min(coefficients, low) * basis) if low else 0
    return 4 * tokens * dim**2 + heads * (predictor + 2 * read * head_dim)


# -- the artefact --------------------------------------------------------------------------------------------------


class Connectivity:
    """The predictors of one transformer, and the weights of the transformer that were tuned under their masks.

    Parameters
    ----------
    layers, heads, head_dim, patches, prefix
        Of the transformer.
    options
        Of every `ConnectivityPredictor`.
    backbone
        Tuned weights of the transformer, by name; empty where it was not tuned.
    imprint
        Of the transformer that they were trained from; None fits all of these sizes.
    notes
        How they were made; kept in the file.
    seed
        Of the predictors' first weights.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        patches: int,
        prefix: int,
        options: Mapping[str, Any] | None = None,
        backbone: Mapping[str, Tensor] | None = None,
        imprint: Imprint | None = None,
        notes: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.sizes = {"layers": layers, "heads": heads, "head_dim": head_dim, "patches": patches, "prefix": prefix}
        self.options, self.backbone, self.imprint = dict(options or {}), dict(backbone or {}), imprint
        self.notes = dict(notes or {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = {
                str(layer): ConnectivityPredictor(head_dim, patches + prefix, heads, prefix=prefix, **self.options)
                for layer in range(layers)
            }
        self.modules = nn.ModuleDict(made)

    @classmethod
    def new(cls, anatomy: Anatomy, *, seed: int = 0, **options: Any) -> Connectivity:
        """Make untrained predictors for a transformer of these sizes; `options` are `ConnectivityPredictor`'s."""
        sizes: dict[str, Any] = _sizes(anatomy)
        return cls(**sizes, options=options, seed=seed)

    def check(self, model: nn.Module, anatomy: Anatomy) -> None:
        """Refuse a transformer that the predictors were not trained for.

        Raises
        ------
        UserError
            Its weights or sizes are others.
        """
        if self.imprint is not None:
            self.imprint.check(model, "connectivity predictors")
        for name, value in _sizes(anatomy).items():
            if name != "patches" and value != self.sizes[name]:
                raise UserError(
                    f"connectivity predictors for {name}={self.sizes[name]}, but this {type(model).__name__} has "
                    f"{value}; train them with {_AGAIN}"
                )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: predictors and backbone in float16."""
        settings = self.sizes | {"options": self.options}
        Artefact(self.modules.state_dict(), settings, self.backbone, self.imprint, self.notes).save(path, _FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Connectivity:
        """Read what `save` wrote, or what mintage ships for the model of this name.

        Raises
        ------
        UserError
            The file is missing, damaged, or holds something else.
        """
        path = shipped("sparsifiner", path)
        held = Artefact.load(path, _FORMAT, _AGAIN)
        try:
            made = cls(**held.settings, backbone=held.backbone, imprint=held.imprint, notes=held.notes)
        except TypeError as error:
            raise UserError(
                f"{path} has other settings than expected ({error}); make it again with: {_AGAIN}"
            ) from None
        held.fill(made.modules, path, _AGAIN)
        return made


def _sizes(anatomy: Anatomy) -> dict[str, int]:
    return {
        "layers": anatomy.layers,
        "heads": anatomy.heads,
        "head_dim": anatomy.dim // anatomy.heads,
        "patches": anatomy.patches,
        "prefix": anatomy.prefix,
    }


# -- the method ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Sparsifiner(Reducer):
    """Sparse attention by predicted connectivity.

    Parameters
    ----------
    keep_rate
        Share of the keys that a patch reads; 1 reads all.
    score_threshold
        Read the keys whose guessed attention is above this, instead of a fixed share.
    backend
        ``"masked"`` or ``"gather"``, see the module.
    prune
        Share of the patches that stay at each of `prune_at` (of all patches: its powers), by the class token's
        attention; 1 prunes none.
    prune_at
        Layers, from 0.
    weights
        A file of ``mintage train sparsifiner``, the name of a model that mintage ships one for, a `Connectivity`, or
        None for untrained predictors.
    fine_tuned
        Put in the transformer's weights that were tuned under the masks, if there are any.

    Raises
    ------
    UserError
        A rate outside (0, 1], a negative layer, or a threshold with the backend ``"gather"``.
    """

    keep_rate: float = 0.25
    score_threshold: float | None = None
    backend: Backend = "masked"
    prune: float = 1.0
    prune_at: tuple[int, ...] = (3, 6, 9)
    weights: str | Connectivity | None = "vit-tiny-cifar10"
    fine_tuned: bool = True
    _held: dict[str, Connectivity] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("keep_rate", "prune"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name):g} is outside (0, 1]; pass the share to keep, e.g. 0.25")
        if self.backend not in ("masked", "gather"):
            raise UserError(f"unknown backend {self.backend!r}; known: masked, gather")
        if self.backend == "gather" and self.score_threshold is not None:
            raise UserError("backend gather needs as many keys in every row; use backend=masked with a threshold")
        if min(self.prune_at, default=0) < 0:
            raise UserError(f"prune_at={self.prune_at}: layers are numbered from 0")

    @property
    def connectivity(self) -> Connectivity | None:
        """The predictors, read when first asked for; None before untrained ones know their transformer."""
        if self.weights is None or isinstance(self.weights, Connectivity):
            return self.weights
        if "weights" not in self._held:
            self._held["weights"] = Connectivity.load(self.weights)
        return self._held["weights"]

    def fitted(self, model: nn.Module, anatomy: Anatomy) -> Sparsifiner:
        """Refuse a model that the predictors were not trained for; make untrained ones where none were asked for."""
        if not self.attends and not self._tunes:
            return self
        if self.connectivity is None:
            return replace(self, weights=Connectivity.new(anatomy))
        self.connectivity.check(model, anatomy)
        return self

    @property
    def _tunes(self) -> bool:
        return self.fine_tuned and self.weights is not None

    @property
    def attends(self) -> bool:
        """Whether a patch reads less than everything."""
        return self.keep_rate < 1 or self.score_threshold is not None

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return all patches, unless tokens are pruned, too."""
        held = self.connectivity if self.attends else None
        if held is not None and held.sizes["patches"] != anatomy.patches:
            raise UserError(
                f"connectivity predictors for {held.sizes['patches']} patches, but this image has {anatomy.patches}; "
                f"pass images of the size that they were trained on, or train them with {_AGAIN}"
            )
        if self.prune < 1 and not anatomy.prefix:
            raise UserError("prune needs a class token, whose attention it goes by; this model has none")
        passed, kept = 0, []
        for layer in range(anatomy.layers):
            passed += layer in self.prune_at
            kept.append(max(math.ceil(self.prune**passed * anatomy.patches), 1))
        return tuple(kept)

    def attend(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads tokens head_dim"] | None:
        """Guess the connectivity, and attend to it; None where it is everything."""
        held, tokens = self.connectivity, evidence.key.shape[2]
        assert held is not None
        total = held.sizes["patches"] + held.sizes["prefix"]
        if self.score_threshold is None and _budget(self.keep_rate, total) >= tokens:
            return None
        approx = self.guess(evidence, layer)
        parts = evidence.query, evidence.key, evidence.value
        if self.backend == "gather":
            return gather_attention(*parts, _best(approx, self.keep_rate, total), evidence.scaling)
        mask = connectivity_mask(approx, self.keep_rate, threshold=self.score_threshold, tokens=total)
        return masked_attention(*parts, mask, evidence.scaling)

    @torch.no_grad()
    def guess(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads patches tokens"]:
        """Return the attention that a layer's predictor expects."""
        assert self.connectivity is not None
        predictor: Any = self.connectivity.modules[str(layer)]
        return predictor.approximate(evidence.query, evidence.key, places=evidence.places)[1]

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Keep the patches that the class token attends to most, in their order."""
        score = evidence.row(0).mean(1)[:, state.prefix :]
        return state.keep(score.topk(keep).indices.sort(1).values)

    def modules(self) -> nn.ModuleDict | None:
        """Return the predictors."""
        return self.connectivity.modules if self.attends and self.connectivity is not None else None

    def backbone(self) -> Mapping[str, Tensor]:
        """Return the transformer's weights that were tuned under the masks."""
        return self.connectivity.backbone if self._tunes and self.connectivity is not None else {}

    @property
    def fixed(self) -> bool:
        """Its strength is a share of the attention, which a share of all multiply-adds does not set."""
        return True

    def unreduced(self) -> Sparsifiner:
        """Return one whose patches read everything, on the transformer's own weights."""
        return replace(self, keep_rate=1.0, score_threshold=None, prune=1.0, fine_tuned=False)

    def mhsa_macs(self, anatomy: Anatomy) -> tuple[int, int]:
        """Multiply-adds of all attention blocks for one image, dense and as the paper counts sparse ones.

        Raises
        ------
        UserError
            A threshold decides, so that the number depends on the image.
        """
        if self.score_threshold is not None:
            raise UserError("with score_threshold the multiply-adds depend on the image; use keep_rate")
        held = self.connectivity or Connectivity.new(anatomy)
        sizes = {"dim": anatomy.dim, "heads": anatomy.heads, "prefix": anatomy.prefix}
        total, dense, sparse = anatomy.patches + anatomy.prefix, 0, 0
        entering = total
        for layer, left in enumerate(self.kept(anatomy)):
            predictor: Any = held.modules[str(layer)]
            reads = min(_budget(self.keep_rate, total), entering)
            dense += mhsa_macs(tokens=total, read=total**2, **sizes)
            sparse += mhsa_macs(
                tokens=entering,
                read=anatomy.prefix * entering + (entering - anatomy.prefix) * reads,
                channels=predictor.query.out_features if reads < entering else 0,
                low=predictor.up.shape[1] if reads < entering else 0,
                coefficients=predictor.coef_topk or predictor.up.shape[1],
                basis=float((predictor.basis() > 0).sum(0).float().mean()),
                **sizes,
            )
            entering = left + anatomy.prefix
        return dense, sparse

    @classmethod
    def tiny(cls) -> Sparsifiner:
        """Make one with untrained predictors."""
        return cls(weights=None)
