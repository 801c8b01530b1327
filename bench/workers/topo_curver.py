"""curver's intersection numbers of curves on one triangulated surface: JSON in, JSON out."""

from __future__ import annotations

import json
import sys
import time

import curver


def main() -> None:
    asked = json.load(sys.stdin)
    surface = curver.create_triangulation([tuple(row) for row in asked["triangles"]])
    curves = [surface(weights) for weights in asked["curves"]]
    started = time.process_time()
    found = [int(curves[i].intersection(curves[j])) for i, j in asked["pairs"]]
    json.dump({"found": found, "seconds": time.process_time() - started}, sys.stdout)


if __name__ == "__main__":
    main()
