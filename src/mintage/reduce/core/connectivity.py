"""Predictors of attention, one per layer, and the file that keeps them (Wei, Duke et al., CVPR 2023, section 3.2).

Not here: attention by what they guess (`mintage.reduce.core.sparse_attention`), training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.reduce.core.schedule import Anatomy
from mintage.reduce.core.sparse_attention import mhsa_macs
from mintage.reduce.core.trained import TrainedModules, authors_weights

__all__ = ["Connectivity", "ConnectivityPredictor"]


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
        positions: Int[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads patches low"], Float[Tensor, "batch heads patches tokens"]]:
        """Return the coefficients and the guessed attention.

        Parameters
        ----------
        query, key
            The layer's own.
        dense
            Keep every coefficient and the signs of the basis: what the reconstruction is trained with.
        positions
            Which tokens these are, where some were pruned.
        """
        down, up = self.down, self.basis(dense)
        if positions is not None:
            down, up = down[positions][:, None], up[positions][:, None]
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


@dataclass(kw_only=True, eq=False)
class Connectivity(TrainedModules):
    """The predictors of one transformer, and the weights of the transformer that were tuned under their masks.

    Parameters
    ----------
    layers, heads, head_dim, patches, prefix
        Of the transformer.
    options
        Of every `ConnectivityPredictor`.
    backbone, imprint, notes, seed
        See `TrainedModules`.
    """

    method: ClassVar[str] = "sparsifiner"
    kept: ClassVar[tuple[str, ...]] = ("layers", "heads", "head_dim", "patches", "prefix", "options")

    layers: int
    heads: int
    head_dim: int
    patches: int
    prefix: int
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Iterator[tuple[int, ConnectivityPredictor]]:
        """Make untrained predictors."""
        for layer in range(self.layers):
            made = ConnectivityPredictor(self.head_dim, self.tokens, self.heads, prefix=self.prefix, **self.options)
            yield layer, made

    @classmethod
    def from_official(cls, given: Mapping[str, Any], **options: Any) -> Connectivity:
        """Read weights of the authors' repository (lim142857/Sparsifiner): their names become these predictors'.

        The transformer's own weights go along; their names are timm's, so a timm DeiT of the same sizes takes them.

        Parameters
        ----------
        given
            What was saved there: weights by name, or a checkpoint that holds them as ``"model"``.
        **options
            Of every `ConnectivityPredictor`, where training had others; sizes are read.

        Raises
        ------
        UserError
            Predictors are missing, or do not belong together.
        """
        held, mine = authors_weights(given), ".attn.mask_predictor."
        names = {"query": "proj_c_q", "key": "proj_c_k"}
        layers = len({name.split(".")[1] for name in held if mine in name})
        try:
            tokens, low = held[f"blocks.0{mine}proj_n"].shape
            channels, head_dim = held[f"blocks.0{mine}proj_c_q.weight"].shape
            heads = held["blocks.0.attn.qkv.weight"].shape[1] // head_dim
            rank = next(r for r in range(1, tokens + 1) if tokens // r == low)
            sizes = {"reduce_tokens": rank, "reduce_channels": head_dim // channels, **options}
            made = cls(layers=layers, heads=heads, head_dim=head_dim, patches=tokens - 1, prefix=1, options=sizes)
            for i, module in made.modules.items():
                at = f"blocks.{i}{mine}"
                own = {f"{a}.{k}": held[f"{at}{b}.{k}"] for a, b in names.items() for k in ("weight", "bias")}
                module.load_state_dict(own | {"down": held[f"{at}proj_n"], "up": held[f"{at}proj_back_n"]})
        except (KeyError, ValueError, RuntimeError, StopIteration) as error:
            said = (str(error).splitlines() or ["rank"])[0]
            raise UserError(f"no weights of lim142857/Sparsifiner ({said}); expected blocks.*{mine}*") from None
        made.backbone = {name: t for name, t in held.items() if mine not in name}
        return made

    @property
    def tokens(self) -> int:
        """Patches and prefix."""
        return self.patches + self.prefix

    @classmethod
    def new(cls, anatomy: Anatomy, *, seed: int = 0, **options: Any) -> Connectivity:
        """Make untrained predictors for a transformer of these sizes; `options` are `ConnectivityPredictor`'s."""
        return cls(**_sizes(anatomy), options=options, seed=seed)

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
            if name != "patches" and value != getattr(self, name):
                raise UserError(
                    f"connectivity predictors for {name}={getattr(self, name)}, but this {type(model).__name__} has "
                    f"{value}; train them with {self.again()}"
                )

    def mhsa_macs(self, anatomy: Anatomy, kept: Sequence[int], read: int) -> tuple[int, int]:
        """Multiply-adds of all attention blocks for one image, dense and as the paper counts sparse ones.

        Parameters
        ----------
        anatomy
            Of the transformer.
        kept
            Patches that stay after each layer.
        read
            Keys that a patch reads.
        """
        sizes = {"dim": anatomy.dim, "heads": anatomy.heads, "prefix": anatomy.prefix}
        total = anatomy.patches + anatomy.prefix
        dense = len(kept) * mhsa_macs(tokens=total, read=total**2, **sizes)
        sparse, entering = 0, total
        for layer, left in enumerate(kept):
            predictor: Any = self.modules[str(layer)]
            reads = min(read, entering)
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


def _sizes(anatomy: Anatomy) -> dict[str, Any]:
    return {
        "layers": anatomy.layers,
        "heads": anatomy.heads,
        "head_dim": anatomy.dim // anatomy.heads,
        "patches": anatomy.patches,
        "prefix": anatomy.prefix,
    }
