"""Codes in files: what other programs and instruments read and write."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code, from_values, parse
from statepool.tasks.sequences.errors import InvalidSequence
from statepool.tasks.sequences.records import read_records

__all__ = ["FORMATS", "export", "read_codes"]

FORMATS = ("csv", "hex", "mat", "readmemh", "rle", "sigmf", "signs", "sol")


def read_codes(path: Path, *, alphabet: int = 2) -> list[tuple[Code, ...]]:
    """Sets of codes in a file: records (.jsonl, .json), QOBLIB solutions (.sol), MATLAB 4 (.mat), or a code per line.

    Raises:
        InvalidSequence: The file holds something else; the sentence names the place.
    """
    if path.suffix in (".jsonl", ".json"):
        return [record.codes for record in read_records(path)]
    if path.suffix == ".mat":
        return [tuple(_read_mat(path))]
    lines = [line.strip() for line in path.read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if path.suffix == ".sol":
        wrong = [line for line in lines if line not in ("0", "1")]
        if wrong:
            raise InvalidSequence(f"{path}: '{wrong[0][:20]}' is neither 0 nor 1; a .sol file has one of them per line")
        return [(Code(tuple(map(int, lines))),)]
    if not lines:
        raise InvalidSequence(f"{path}: holds no code")
    return [(parse(line, alphabet=alphabet),) for line in lines]


def export(codes: Sequence[Code], form: str, out: Path) -> list[Path]:
    """Write codes in one of :data:`FORMATS`; answers the files written.

    In ``hex`` and ``readmemh`` the first symbol is the most significant of n bits and bit 1 is -1; in ``sol`` 1 is -1.

    Raises:
        InvalidRequest: No such format.
        InvalidSequence: The format is for binary codes only, or for one code.
    """
    if form not in FORMATS:
        raise InvalidRequest(f"fmt: '{form}' is none of {', '.join(FORMATS)}", param="fmt")
    if form == "sigmf":
        return _write_sigmf(codes, out)
    if form == "mat":
        out.write_bytes(_mat(codes))
        return [out]
    if form == "sol":
        if len(codes) != 1:
            raise InvalidSequence(f"codes: a .sol file holds one code, not {len(codes)}")
        text = "".join(f"{int(sign < 0)}\n" for sign in codes[0].signs)
    elif form == "csv":
        text = "".join(",".join(map(str, code.signs if code.binary else code.phases)) + "\n" for code in codes)
    elif form == "readmemh":
        text = "// first symbol in the most significant bit, 1 is -1\n" + "".join(code.hex + "\n" for code in codes)
    else:
        name = {"hex": "hex", "rle": "runs", "signs": "text"}[form]
        text = "".join(getattr(code, name) + "\n" for code in codes)
    out.write_text(text)
    return [out]


def _mat(codes: Sequence[Code]) -> bytes:
    """A level 4 file with the real matrix ``codes`` (rows are codes), and ``codes_imag`` for polyphase ones."""
    parts = [("codes", np.array([code.values.real for code in codes]))]
    if not all(code.binary for code in codes):
        parts.append(("codes_imag", np.array([code.values.imag for code in codes])))
    content = b""
    for name, matrix in parts:
        label = name.encode() + b"\0"
        content += struct.pack("<5i", 0, *matrix.shape, 0, len(label)) + label + matrix.astype("<f8").tobytes("F")
    return content


def _read_mat(path: Path) -> list[Code]:
    content = path.read_bytes()
    if len(content) < 20:
        raise InvalidSequence(f"{path}: is no MATLAB file of level 4 (save -v4)")
    kind, rows, columns, imaginary, label = struct.unpack_from("<5i", content)
    start = 20 + label
    if kind != 0 or imaginary or min(rows, columns, label) < 1 or len(content) < start + 8 * rows * columns:
        raise InvalidSequence(f"{path}: is no real double matrix of a MATLAB file of level 4 (save -v4)")
    matrix = np.frombuffer(content, "<f8", rows * columns, start).reshape((rows, columns), order="F")
    return [from_values(row.tolist()) for row in (matrix.T if columns == 1 else matrix)]


def _write_sigmf(codes: Sequence[Code], out: Path) -> list[Path]:
    data, meta = out.with_suffix(".sigmf-data"), out.with_suffix(".sigmf-meta")
    data.write_bytes(np.concatenate([code.values for code in codes]).astype("<c8").tobytes())
    starts = np.cumsum([0, *(len(code) for code in codes)])[:-1]
    about = {
        "global": {"core:datatype": "cf32_le", "core:version": "1.0.0", "core:description": "one sample per symbol"},
        "captures": [{"core:sample_start": 0}],
        "annotations": [
            {"core:sample_start": int(start), "core:sample_count": len(code), "core:label": f"code {number}"}
            for number, (start, code) in enumerate(zip(starts, codes, strict=True))
        ],
    }
    meta.write_text(json.dumps(about, indent=1) + "\n")
    return [data, meta]
