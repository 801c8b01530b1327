"""curver's intersection numbers of curves on triangulated surfaces: JSON in, JSON out."""

from __future__ import annotations

import json
import sys
import time

import curver


def main() -> None:
    answers = []
    for asked in json.load(sys.stdin):
        started = time.process_time()
        surface = curver.create_triangulation([tuple(row) for row in asked["triangles"]])
        curves = [surface(weights) for weights in asked["curves"]]
        made = time.process_time()
        found = [int(curves[i].intersection(curves[j])) for i, j in asked["pairs"]]
        answers.append({"found": found, "made": made - started, "crossed": time.process_time() - made})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
