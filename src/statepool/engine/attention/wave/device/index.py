"""A wave index whose tensors are on one device: built at once from keys and values, asked token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.attention.wave.config import WaveConfig
from statepool.engine.attention.wave.device.triton_cluster import cluster, members, sums
from statepool.engine.attention.wave.device.triton_decode import PAGE, decode


@dataclass(frozen=True, slots=True)
class DeviceWaveIndex:
    """Contexts of one length; a *stream* is one KV head of one of them. ``T`` is bfloat16 or float32.

    Attributes:
        config: settings; segments are clustered alone, as in the native index.
        pages: T ``[pages][2][8][width]``, all rows of all streams, cluster by cluster.
        steady: int32 ``[streams][slots]``, pages that are always read, and in ``steady_filled`` their tokens.
        first_page: int64 ``[streams][clusters]``, where a cluster's pages begin.
        sizes: int64 ``[streams][clusters]``, its tokens.
        most_pages: of any cluster.
        centroids, means: T ``[streams][clusters][width]``, of keys and of values.
        spread: float32 ``[streams][clusters]``, mean squared distance of the keys per dimension.
    """

    config: WaveConfig
    pages: Tensor
    steady: Tensor
    steady_filled: Tensor
    first_page: Tensor
    sizes: Tensor
    most_pages: int
    centroids: Tensor
    means: Tensor
    spread: Tensor

    @classmethod
    def build(cls, keys: Tensor, values: Tensor, config: WaveConfig) -> DeviceWaveIndex:
        """Cluster ``keys`` and ``values``, T ``[streams][tokens][width]``.

        Raises:
            InvalidRequest: shapes do not fit, or there is nothing between the sink and the newest tokens.
            InvalidConfig: ``diag2``, which only the native index has.
        """
        if config.estimator == "diag2":
            raise InvalidConfig("estimator diag2 is not built for devices; take iso2", param="estimator")
        if keys.ndim != 3 or keys.shape != values.shape or keys.dtype != values.dtype:
            raise InvalidRequest(
                f"keys and values must both be [streams, tokens, width]; got {tuple(keys.shape)} {keys.dtype} "
                f"and {tuple(values.shape)} {values.dtype}",
                param="keys",
            )
        streams, count, width = keys.shape
        stop = count - config.local
        if stop - config.sink < config.tokens_per_cluster:
            raise InvalidRequest(f"{count} tokens are too few to cluster: read them whole", param="keys")
        best, clusters = _clusters(keys[:, config.sink : stop].float(), config)
        order, offsets = members(best, clusters)
        sizes = offsets.diff(dim=1)
        body = [x[:, config.sink : stop].float().contiguous() for x in (keys, values)]
        share = sizes.clamp_min(1)[..., None]
        centroids, means = (sums(x, order, offsets) / share for x in body)
        distance = (body[0] - centroids.gather(1, best.long()[..., None].expand(-1, -1, width))).square().mean(2)
        spread = torch.zeros_like(sizes, dtype=torch.float32).scatter_add_(1, best.long(), distance) / share[..., 0]
        each = (sizes + PAGE - 1) // PAGE
        first = each.cumsum(1) - each
        rest = torch.cat([torch.arange(config.sink), torch.arange(stop, count)]).to(keys.device)
        steady = -(-len(rest) // PAGE)
        per_stream = int(each.sum(1).max()) + steady
        bases = torch.arange(streams, device=keys.device)[:, None] * per_stream
        # The place of the i-th row of a stream, cluster by cluster, among all rows of all pages.
        owner = best.long().gather(1, order)
        within = torch.arange(order.shape[1], device=keys.device) - offsets.gather(1, owner)
        place = (bases + steady + first.gather(1, owner)) * PAGE + within
        pages = keys.new_zeros(streams * per_stream, 2, PAGE, width)
        for part, rows in enumerate((keys, values)):
            flat = pages[:, part].reshape(-1, width)
            flat[place.flatten()] = rows.gather(1, (order + config.sink)[..., None].expand(-1, -1, width)).flatten(0, 1)
            flat[(bases * PAGE + torch.arange(len(rest), device=keys.device)).flatten()] = rows[:, rest].flatten(0, 1)
            pages[:, part] = flat.view(-1, PAGE, width)
        slots = torch.arange(steady, device=keys.device)
        filled = (len(rest) - slots * PAGE).clamp_max(PAGE).int().expand(streams, -1)
        return cls(
            config, pages, (bases + slots).int(), filled, bases + steady + first, sizes, int(each.max()),
            centroids.to(keys.dtype), means.to(keys.dtype), spread,
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: Sequence[DeviceWaveIndex]) -> DeviceWaveIndex:
        """One index of the streams of several, built with the same settings over contexts of the same length."""
        bases = [0, *accumulate(len(part.pages) for part in parts)]
        moved = [
            replace(part, steady=part.steady + base, first_page=part.first_page + base)
            for part, base in zip(parts, bases, strict=False)
        ]
        names = [item.name for item in fields(cls) if item.name not in ("config", "most_pages")]
        tensors = {name: torch.cat([getattr(part, name) for part in moved]) for name in names}
        return cls(config=parts[0].config, most_pages=max(part.most_pages for part in parts), **tensors)

    def decode(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """(out float32 ``[streams][group][width]``, lse ``[streams][group]``) of ``query`` float32 of the same shape.

        Nothing here waits for the device.
        """
        scale, clusters = query.shape[2] ** -0.5, self.sizes.shape[1]
        scores = (query.to(self.centroids.dtype) @ self.centroids.transpose(1, 2)).float() * scale
        log_size = self.sizes.float().log()[:, None]
        if self.config.estimator == "iso2":
            variance = self.spread[:, None] * (query * scale).square().sum(2, keepdim=True)
            size = log_size.clamp_min(0)
            # Among few keys the sum is its largest term and no more: see docs/attention.md.
            scores = scores + torch.where(variance <= 2 * size, variance / 2, (2 * size * variance).sqrt() - size)
        massed = scores + log_size
        # Empty clusters have a logarithm of -inf, and so no share.
        ranked = massed if self.config.rank == "mass" else torch.where(log_size.isneginf(), -torch.inf, scores)
        rank = ranked.softmax(2).sum(1)
        read = round(self.config.retrieve * clusters)
        both = min(read + round(self.config.estimate * clusters), clusters)
        chosen = rank.topk(both, dim=1, sorted=True).indices
        table, filled = self._listed(chosen[:, :read])
        return decode(query, self.pages, table, filled, massed, self.means, chosen[:, read:].contiguous(), scale)

    def _listed(self, clusters: Tensor) -> tuple[Tensor, Tensor]:
        """(table, filled) int32 ``[streams][slots]``: the steady pages, then those of ``clusters``, then nothing."""
        streams, read = clusters.shape
        if not read:
            return self.steady.contiguous(), self.steady_filled.contiguous()
        sizes = self.sizes.gather(1, clusters)
        each = (sizes + PAGE - 1) // PAGE
        ends = each.cumsum(1)
        slots = torch.arange(read * self.most_pages, device=clusters.device).expand(streams, -1).contiguous()
        at = torch.searchsorted(ends, slots, right=True).clamp_max(read - 1)
        within = slots - (ends - each).gather(1, at)
        filled = (sizes.gather(1, at) - within * PAGE).clamp(0, PAGE)
        page = self.first_page.gather(1, clusters).gather(1, at) + within
        page = torch.where(filled > 0, page, 0)
        parts: list[tuple[Any, Any]] = [(self.steady, page), (self.steady_filled, filled)]
        table, tokens = (torch.cat([a, b.int()], dim=1).contiguous() for a, b in parts)
        return table, tokens


def _clusters(keys: Tensor, config: WaveConfig) -> tuple[Tensor, int]:
    """(cluster of each key int32 ``[streams][tokens]``, how many) of float32 keys, segment by segment."""
    found, clusters = [], 0
    for stretch in keys.split(config.segment, dim=1):
        number = max(stretch.shape[1] // config.tokens_per_cluster, 1)
        centred = (stretch - stretch.mean(1, keepdim=True)).contiguous()
        found.append(cluster(centred, number, config.iterations) + clusters)
        clusters += number
    return torch.cat(found, dim=1), clusters
