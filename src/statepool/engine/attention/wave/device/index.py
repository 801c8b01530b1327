"""A wave index whose tensors are on one device: built from keys and values, then asked and grown token by token."""

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
class _Clustered:
    """Clustered tokens, see ``DeviceWaveIndex``."""

    pages: Tensor
    first_page: Tensor
    sizes: Tensor
    most_pages: int
    centroids: Tensor
    means: Tensor
    spread: Tensor


@dataclass(frozen=True, slots=True)
class DeviceWaveIndex(_Clustered):
    """Contexts of one length; a *stream* is one KV head of one of them. ``T`` is bfloat16 or float32.

    Attributes:
        config: settings; segments are clustered alone, as in the native index.
        pages: T ``[pages][2][8][width]``, all rows of all streams, cluster by cluster.
        steady: int32 ``[streams][slots]``, pages that are always read, and in ``steady_filled`` their tokens: the sink,
            then the newest. There is room until ``update_segment`` more than ``local`` are newest.
        newest: how many are.
        first_page: int64 ``[streams][clusters]``, where a cluster's pages begin.
        sizes: int64 ``[streams][clusters]``, its tokens.
        most_pages: of any cluster.
        centroids, means: T ``[streams][clusters][width]``, of keys and of values.
        spread: float32 ``[streams][clusters]``, mean squared distance of the keys per dimension.
    """

    config: WaveConfig
    steady: Tensor
    steady_filled: Tensor
    newest: int

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
        slots = -(-(config.sink + config.local + config.update_segment) // PAGE)
        steady = torch.arange(streams * slots, device=keys.device, dtype=torch.int32).view(streams, slots)
        packed = _clustered(keys[:, config.sink : stop], values[:, config.sink : stop], config, steady.numel())
        held: dict[str, Any] = {item.name: getattr(packed, item.name) for item in fields(packed)}
        held["pages"] = torch.cat([keys.new_zeros(steady.numel(), 2, PAGE, width), packed.pages])
        filled = _filled(steady, config.sink + config.local)
        index = cls(**held, config=config, steady=steady, steady_filled=filled, newest=config.local)
        index._write(0, keys[:, : config.sink], values[:, : config.sink])
        index._write(config.sink, keys[:, stop:], values[:, stop:])
        return index

    def append(self, keys: Tensor, values: Tensor) -> DeviceWaveIndex:
        """The index with more tokens behind, T ``[streams][tokens][width]``; this one must not be used any more.

        They are read whole until ``update_segment`` more than ``local`` are; then the oldest are clustered, alone.

        Raises:
            InvalidRequest: shapes or types are not those of the index.
        """
        shape = (len(self.sizes), keys.shape[1] if keys.ndim == 3 else -1, self.pages.shape[3])
        if {tuple(x.shape) for x in (keys, values)} != {shape} or {keys.dtype, values.dtype} != {self.pages.dtype}:
            raise InvalidRequest(
                f"keys and values must be [{shape[0]}, tokens, {shape[2]}] {self.pages.dtype}; got {tuple(keys.shape)} "
                f"{keys.dtype} and {tuple(values.shape)} {values.dtype}",
                param="keys",
            )
        config, index = self.config, self
        while count := keys.shape[1]:
            fits = min(count, config.local + config.update_segment - index.newest)
            index._write(config.sink + index.newest, keys[:, :fits], values[:, :fits])
            newest = index.newest + fits
            index = replace(index, newest=newest, steady_filled=_filled(index.steady, config.sink + newest))
            if newest == config.local + config.update_segment:
                index = index._settled()
            keys, values = keys[:, fits:], values[:, fits:]
        return index

    def _write(self, at: int, keys: Tensor, values: Tensor) -> None:
        """Put tokens at the places ``at`` and behind of the steady pages."""
        places = torch.arange(at, at + keys.shape[1], device=keys.device)
        pages = self.steady[:, places // PAGE].long()
        self.pages[pages, 0, places % PAGE], self.pages[pages, 1, places % PAGE] = keys, values

    def _settled(self) -> DeviceWaveIndex:
        """With the oldest of the newest tokens in clusters, and the last ``local`` of them behind the sink."""
        config = self.config
        streams, (_, _, _, width) = len(self.sizes), self.pages.shape
        rows = self.pages[self.steady.long()].transpose(1, 2).reshape(streams, 2, -1, width)
        old, kept = rows[:, :, config.sink : config.sink + self.newest].split(
            [config.update_segment, config.local], dim=2
        )
        packed = _clustered(old[:, 0], old[:, 1], config, len(self.pages))
        self._write(config.sink, kept[:, 0], kept[:, 1])
        names = ("first_page", "sizes", "centroids", "means", "spread")
        grown: dict[str, Any] = {name: torch.cat([getattr(self, name), getattr(packed, name)], dim=1) for name in names}
        return replace(
            self,
            pages=torch.cat([self.pages, packed.pages]),
            steady_filled=_filled(self.steady, config.sink + config.local),
            newest=config.local,
            most_pages=max(self.most_pages, packed.most_pages),
            **grown,
        )

    @classmethod
    def joined(cls, parts: Sequence[DeviceWaveIndex]) -> DeviceWaveIndex:
        """One index of the streams of several, built with the same settings over contexts of the same length."""
        bases = [0, *accumulate(len(part.pages) for part in parts)]
        moved = [
            replace(part, steady=part.steady + base, first_page=part.first_page + base)
            for part, base in zip(parts, bases, strict=False)
        ]
        names = [item.name for item in fields(cls) if item.name not in ("config", "newest", "most_pages")]
        tensors = {name: torch.cat([getattr(part, name) for part in moved]) for name in names}
        most = max(part.most_pages for part in parts)
        return cls(config=parts[0].config, newest=parts[0].newest, most_pages=most, **tensors)

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
        read, estimated = self.config.budget(clusters)
        chosen = rank.topk(read + estimated, dim=1, sorted=True).indices
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


def _clustered(keys: Tensor, values: Tensor, config: WaveConfig, base: int) -> _Clustered:
    """Cluster T ``[streams][tokens][width]``; pages count from ``base``."""
    streams, _, width = keys.shape
    body = [x.float().contiguous() for x in (keys, values)]
    best, clusters = _clusters(body[0], config)
    order, offsets = members(best, clusters)
    sizes = offsets.diff(dim=1)
    share = sizes.clamp_min(1)[..., None]
    centroids, means = (sums(x, order, offsets) / share for x in body)
    distance = (body[0] - centroids.gather(1, best.long()[..., None].expand(-1, -1, width))).square().mean(2)
    spread = torch.zeros_like(sizes, dtype=torch.float32).scatter_add_(1, best.long(), distance) / share[..., 0]
    each = (sizes + PAGE - 1) // PAGE
    per_stream = int(each.sum(1).max())
    first = each.cumsum(1) - each + torch.arange(streams, device=keys.device)[:, None] * per_stream
    # The place of the i-th row of a stream, cluster by cluster, among all rows of all pages.
    owner = best.long().gather(1, order)
    within = torch.arange(order.shape[1], device=keys.device) - offsets.gather(1, owner)
    place = (first.gather(1, owner) * PAGE + within).flatten()
    pages = keys.new_zeros(streams * per_stream, 2, PAGE, width)
    for part, rows in enumerate((keys, values)):
        flat = pages[:, part].reshape(-1, width)
        flat[place] = rows.gather(1, order[..., None].expand(-1, -1, width)).flatten(0, 1)
        pages[:, part] = flat.view(-1, PAGE, width)
    return _Clustered(
        pages, first + base, sizes, int(each.max()), centroids.to(keys.dtype), means.to(keys.dtype), spread
    )


def _filled(steady: Tensor, tokens: int) -> Tensor:
    """How many of ``tokens`` each of the pages holds."""
    slots = torch.arange(steady.shape[1], device=steady.device)
    return (tokens - slots * PAGE).clamp(0, PAGE).int().expand(len(steady), -1)


def _clusters(keys: Tensor, config: WaveConfig) -> tuple[Tensor, int]:
    """(cluster of each key int32 ``[streams][tokens]``, how many) of float32 keys, segment by segment."""
    found, clusters = [], 0
    for stretch in keys.split(config.segment, dim=1):
        number = max(stretch.shape[1] // config.tokens_per_cluster, 1)
        centred = (stretch - stretch.mean(1, keepdim=True)).contiguous()
        found.append(cluster(centred, number, config.iterations) + clusters)
        clusters += number
    return torch.cat(found, dim=1), clusters
