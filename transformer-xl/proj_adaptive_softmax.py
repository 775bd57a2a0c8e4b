"""Adaptive input embedding and adaptive softmax with tied weights and projections.

Grave et al. (2017) for the softmax, Baevski & Auli (2019) for the input side, Dai et al. (2019) for how the two are
tied. The vocabulary must be sorted by falling frequency: cluster 0 holds the most frequent symbols.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from attention_pruning import InputError


def cluster_bounds(n_token: int, cutoffs: list[int]) -> list[int]:
    """Check the cutoffs and return the borders of the clusters, ``[0, *cutoffs, n_token]``.

    Raises
    ------
    InputError
        If the cutoffs are not strictly increasing numbers inside the vocabulary.
    """
    bounds = [0, *cutoffs, n_token]
    if any(low >= high for low, high in zip(bounds, bounds[1:], strict=False)):
        raise InputError(
            f"cutoffs: expected increasing numbers between 0 and the vocabulary size {n_token}, found {cutoffs}"
        )
    return bounds


def split_clusters(tables: list[Tensor], bounds: list[int]) -> list[Tensor]:
    """One table per cluster; a single table is split at once: one gradient buffer, where slices cost one each."""
    if len(tables) > 1:
        return tables
    return list(tables[0].split([high - low for low, high in zip(bounds, bounds[1:], strict=False)]))


class AdaptiveEmbedding(nn.Module):
    """Embedding whose rare clusters are narrower, each projected to the model's width.

    Parameters
    ----------
    n_token : int
        Vocabulary size V.
    d_embed, d_proj : int
        Width of the most frequent cluster's embedding, and of the model.
    cutoffs : list of int
        Borders between clusters; empty for a plain embedding.
    div_val : int
        Cluster i has width ``d_embed // div_val**i``. With 1 there is a single table.
    """

    def __init__(self, n_token: int, d_embed: int, d_proj: int, cutoffs: list[int], div_val: int = 1) -> None:
        super().__init__()
        self.bounds = cluster_bounds(n_token, cutoffs)
        self.div_val = div_val
        self.scale = d_proj**0.5
        sizes = [high - low for low, high in zip(self.bounds, self.bounds[1:], strict=False)]
        if div_val == 1:
            self.tables = nn.ParameterList([nn.Parameter(torch.empty(n_token, d_embed))])
            widths = [d_embed] if d_proj != d_embed else []
        else:
            widths = [d_embed // div_val**i for i in range(len(sizes))]
            if widths[-1] < 1:
                raise InputError(f"div_val: {div_val} leaves nothing of d_embed {d_embed} for cluster {len(sizes) - 1}")
            self.tables = nn.ParameterList(
                [nn.Parameter(torch.empty(size, width)) for size, width in zip(sizes, widths, strict=True)]
            )
        self.projections = nn.ParameterList([nn.Parameter(torch.empty(d_proj, width)) for width in widths])

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Embed token ids: [B, T] -> [B, T, d_proj], scaled by sqrt(d_proj)."""
        if self.div_val == 1:
            embedded = F.embedding(ids_BT, self.tables[0])
            if self.projections:
                embedded = F.linear(embedded, self.projections[0])
            return embedded * self.scale
        flat = ids_BT.reshape(-1)
        embedded = self.projections[0].new_zeros(flat.numel(), self.projections[0].size(0))
        for i, (table, projection) in enumerate(zip(self.tables, self.projections, strict=True)):
            low, high = self.bounds[i], self.bounds[i + 1]
            where = ((flat >= low) & (flat < high)).nonzero().squeeze(1)  # empty or not: all weights get a gradient
            rows = F.linear(F.embedding(flat[where] - low, table), projection)
            embedded = embedded.index_copy(0, where, rows.to(embedded.dtype))
        return embedded.view(*ids_BT.shape, -1) * self.scale

    def cluster_weights(self) -> list[Tensor]:
        """The embedding rows of every cluster, [size, width] each."""
        return split_clusters(list(self.tables), self.bounds)

    def cluster_projection(self, cluster: int) -> Tensor | None:
        """The projection of one cluster, [d_proj, width]; None where the widths are equal."""
        if not self.projections:
            return None
        return self.projections[0 if self.div_val == 1 else cluster]


class ProjectedAdaptiveLogSoftmax(nn.Module):
    """Adaptive softmax over the clusters of an :class:`AdaptiveEmbedding`.

    Parameters
    ----------
    embedding : AdaptiveEmbedding
        Gives the shapes; its weights are used as output weights when ``tied``.
    tied : bool
        Share output weights with the embedding.
    tie_projs : list of bool
        Per cluster: share the projection with the embedding's. The published base models tie all but the first.
    """

    def __init__(self, embedding: AdaptiveEmbedding, tied: bool, tie_projs: list[bool]) -> None:
        super().__init__()
        self.bounds = embedding.bounds
        self.n_clusters = len(self.bounds) - 2
        self.tied, self.tie_projs = tied, tie_projs
        self.bias = nn.Parameter(torch.zeros(self.bounds[-1]))
        head_width = embedding.tables[0].size(1)
        if self.n_clusters:
            self.cluster_weight = nn.Parameter(torch.empty(self.n_clusters, head_width))
            self.cluster_bias = nn.Parameter(torch.zeros(self.n_clusters))
        self.weights = nn.ParameterList(
            [] if tied else [nn.Parameter(torch.empty_like(table)) for table in embedding.tables]
        )
        self.projections = nn.ParameterDict(
            {
                str(i): nn.Parameter(torch.empty_like(projection))
                for i in range(self.n_clusters + 1)
                if (projection := embedding.cluster_projection(i)) is not None and not self.tie_projs[i]
            }
        )

    def _clusters(self, embedding: AdaptiveEmbedding) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every cluster; the first holds the entries of the tail clusters, too."""
        weights = embedding.cluster_weights() if self.tied else split_clusters(list(self.weights), self.bounds)
        biases = split_clusters([self.bias], self.bounds)
        if self.n_clusters:
            weights[0] = torch.cat([weights[0], self.cluster_weight])
            biases[0] = torch.cat([biases[0], self.cluster_bias])
        return list(zip(weights, biases, strict=True))

    def _logits(
        self, hidden: Tensor, cluster: int, parameters: tuple[Tensor, Tensor], embedding: AdaptiveEmbedding
    ) -> Tensor:
        projection = embedding.cluster_projection(cluster)
        if projection is not None and not self.tie_projs[cluster]:
            projection = self.projections[str(cluster)]
        if projection is not None:
            hidden = F.linear(hidden, projection.t())
        return F.linear(hidden, *parameters)

    def forward(self, hidden_ND: Tensor, target_N: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """Negative log-likelihood of each target.

        Parameters
        ----------
        hidden_ND : Tensor
            [N, d_proj]
        target_N : Tensor
            int64 [N]

        Returns
        -------
        Tensor
            float [N], in nats.
        """
        clusters = self._clusters(embedding)
        head = self._logits(hidden_ND, 0, clusters[0], embedding)
        if not self.n_clusters:
            return F.cross_entropy(head.float(), target_N, reduction="none")
        borders = torch.tensor(self.bounds[1:-1], device=target_N.device)
        cluster_N = torch.bucketize(target_N, borders, right=True)
        head_target = torch.where(cluster_N == 0, target_N, self.bounds[1] + cluster_N - 1)
        nll = F.cross_entropy(head.float(), head_target, reduction="none")
        for i in range(1, self.n_clusters + 1):
            # A cluster without targets still gives its weights a gradient, of zero: several processes must agree on it.
            where = (cluster_N == i).nonzero().squeeze(1)
            tail = self._logits(hidden_ND[where], i, clusters[i], embedding)
            tail_nll = F.cross_entropy(tail.float(), target_N[where] - self.bounds[i], reduction="none")
            nll = nll.index_add(0, where, tail_nll)
        return nll

    def log_probabilities(self, hidden_ND: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """Log-probability of the whole vocabulary, [N, V]; rows sum to one after exp."""
        clusters = self._clusters(embedding)
        head = self._logits(hidden_ND, 0, clusters[0], embedding).float().log_softmax(-1)
        size = self.bounds[1]
        parts = [head[:, :size]]
        for i in range(1, self.n_clusters + 1):
            tail = self._logits(hidden_ND, i, clusters[i], embedding).float().log_softmax(-1)
            parts.append(head[:, size + i - 1 : size + i] + tail)
        return torch.cat(parts, -1)
