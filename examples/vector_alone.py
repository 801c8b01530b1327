"""The vector room alone, without torch and without a server: `python examples/vector_alone.py`."""

import numpy as np

from statepool.vector import Index

rows = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
index = Index(32, metric="cos")
index.build(rows)
found = index.search(rows[17], 3)
print("nearest to row 17:", [int(each) for each in found.ids])
