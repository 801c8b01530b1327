"""The indices under measurement, each behind the same three calls. Every library is imported where it is used.

All graphs have at most 32 neighbours per node (M = 16 doubles on the ground level) and a build window of 150.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

DEGREE = 32
WINDOW = 150


class System(Protocol):
    """An index of one library."""

    package: str

    def build(self, rows: np.ndarray, threads: int) -> None:
        """Index float32 unit vectors for the inner product."""

    def tune(self, width: int, threads: int) -> None:
        """Candidates per search, and threads per query where the library has such a thing."""

    def search(self, query: np.ndarray, k: int) -> np.ndarray:
        """Ids of the ``k`` nearest: one query, one call."""


class Statepool:
    """Ours. ``sealed`` searches quantised neighbours."""

    package = "statepool"

    def __init__(self, sealed: bool, engine: str = "auto", **options: Any) -> None:
        self._sealed, self._engine, self._options = sealed, engine, options

    def build(self, rows: np.ndarray, threads: int) -> None:
        from statepool.vector import Index

        self._index = Index(rows.shape[1], "cos", R=DEGREE, build_window=WINDOW, **self._options)
        self._index.build(rows, threads=threads)
        if self._sealed:
            self._index.seal(threads=threads)

    def tune(self, width: int, threads: int) -> None:
        self._width, self._threads = width, threads

    def search(self, query: np.ndarray, k: int) -> Any:
        return self._index.search(query, k, self._width, threads=self._threads, engine=self._engine).ids


class Hnswlib:
    """The reference implementation of HNSW."""

    package = "hnswlib"

    def build(self, rows: np.ndarray, threads: int) -> None:
        import hnswlib

        self._index = hnswlib.Index("ip", rows.shape[1])
        self._index.init_index(len(rows), ef_construction=WINDOW, M=DEGREE // 2)
        self._index.add_items(rows, num_threads=threads)
        self._index.set_num_threads(1)

    def tune(self, width: int, threads: int) -> None:
        self._index.set_ef(width)

    def search(self, query: np.ndarray, k: int) -> Any:
        return self._index.knn_query(query, k, num_threads=1)[0][0]


class Faiss:
    """IndexHNSWFlat."""

    package = "faiss-cpu"

    def build(self, rows: np.ndarray, threads: int) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self._index = faiss.IndexHNSWFlat(rows.shape[1], DEGREE // 2, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = WINDOW
        self._index.add(rows)
        faiss.omp_set_num_threads(1)

    def tune(self, width: int, threads: int) -> None:
        self._index.hnsw.efSearch = width

    def search(self, query: np.ndarray, k: int) -> Any:
        return self._index.search(query[None], k)[1][0]


class Usearch:
    """USearch in float32."""

    package = "usearch"

    def build(self, rows: np.ndarray, threads: int) -> None:
        from usearch.index import Index

        options = {"connectivity": DEGREE // 2, "expansion_add": WINDOW, "dtype": "f32"}
        self._index = Index(ndim=rows.shape[1], metric="ip", **options)
        self._index.add(np.arange(len(rows)), rows, threads=threads)

    def tune(self, width: int, threads: int) -> None:
        self._index.expansion_search = width

    def search(self, query: np.ndarray, k: int) -> Any:
        return self._index.search(query, k, threads=1).keys


class Svs:
    """Vamana of Intel's Scalable Vector Search in float32."""

    package = "scalable-vs"

    def build(self, rows: np.ndarray, threads: int) -> None:
        import svs

        parameters = svs.VamanaBuildParameters(
            graph_max_degree=DEGREE, window_size=WINDOW, alpha=0.95, prune_to=DEGREE, max_candidate_pool_size=2 * WINDOW
        )
        self._index = svs.Vamana.build(parameters, rows, svs.DistanceType.MIP, num_threads=threads)
        self._index.num_threads = 1

    def tune(self, width: int, threads: int) -> None:
        self._index.search_window_size = width

    def search(self, query: np.ndarray, k: int) -> Any:
        return self._index.search(query[None], k)[0][0]


class Rabitq:
    """The quantised graph of the authors of RaBitQ (SymphonyQG)."""

    package = "rabitqlib"

    def build(self, rows: np.ndarray, threads: int) -> None:
        import rabitqlib

        self._index = rabitqlib.SymqgIndex(rows.shape[1], DEGREE, "ip")
        self._index.build(rows, WINDOW, threads)

    def tune(self, width: int, threads: int) -> None:
        self._width = width

    def search(self, query: np.ndarray, k: int) -> Any:
        return self._index.search(query[None], k, self._width)[0][0]


MAKERS = {
    "ours": lambda: Statepool(sealed=False),
    "ours sealed": lambda: Statepool(sealed=True),
    "hnswlib": Hnswlib,
    "faiss": Faiss,
    "usearch": Usearch,
    "svs": Svs,
    "rabitq": Rabitq,
}
"""By the name rows and notes use."""


def make(name: str) -> Any:
    """The index called ``name``; for ours, ``ours:ENGINE`` or ``ours sealed:ENGINE`` names the engine.

    Raises:
        KeyError: an unknown name.
    """
    base, _, engine = name.partition(":")
    if engine:
        return Statepool(sealed=base.endswith("sealed"), engine=engine)
    return MAKERS[base]()


def version_of(system: Any) -> dict[str, str]:
    """Package and version, for the row."""
    return {} if system.package == "statepool" else {system.package: version(system.package)}
