"""What a cell shows: values in every form they have, figures as pictures and data, lines that begin with ``!``."""

from __future__ import annotations

import base64
import json
import re
import sys
from typing import Any

__all__ = ["bundle", "figures", "shell_lines"]

_FORMS = {
    "_repr_html_": "html",
    "_repr_markdown_": "markdown",
    "_repr_svg_": "svg",
    "_repr_png_": "png",
    "_repr_jpeg_": "jpeg",
    "_repr_pdf_": "pdf",
    "_repr_latex_": "latex",
    "_repr_json_": "json",
    "_repr_javascript_": "javascript",
}
_MIME = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
}
_PLAIN = {type(None), bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset}
"""They have no further form."""
_MOST_TEXT = 1 << 20
_SHELL = re.compile(r"^([ \t]*)(?:!|%pip )(.+)$", re.MULTILINE)


def bundle(value: Any) -> dict[str, Any]:
    """The forms of a value by name; bytes as base64. A form whose method fails is left out."""
    forms: dict[str, Any] = {"text": _text(value)}
    data: Any
    kind = type(value)
    if kind in _PLAIN:
        return forms
    if hasattr(kind, "_repr_mimebundle_"):
        found = _call(value, "_repr_mimebundle_")
        found = found[0] if isinstance(found, tuple) else found
        for mime, data in (found or {}).items():
            if mime in _MIME:
                forms[_MIME[mime]] = _plain(data)
    for method, form in _FORMS.items():
        if hasattr(kind, method) and form not in forms:
            data = _call(value, method)
            if data is not None:
                forms[form] = _plain(data[0] if isinstance(data, tuple) else data)
    if columns := _table(value):
        forms["data"] = columns
    return forms


def figures() -> list[dict[str, Any]]:
    """Open figures of matplotlib: a picture, and the numbers in it; then they are closed."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None or not pyplot.get_fignums():
        return []
    import io

    found = []
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", bbox_inches="tight")
        form: dict[str, Any] = {"text": repr(figure), "png": base64.b64encode(picture.getvalue()).decode()}
        if (chart := _chart(figure)) is not None:
            form["chart"] = chart
        found.append(form)
        pyplot.close(figure)
    return found


def shell_lines(code: str) -> str:
    """``!command`` and ``%pip …`` as Python; code that is valid as it stands is left alone."""
    if "!" not in code and "%pip " not in code:
        return code
    try:
        compile(code, "<cell>", "exec", 0x2000, dont_inherit=True)
    except SyntaxError:
        return _SHELL.sub(_shell, code)
    return code


def _shell(found: re.Match[str]) -> str:
    command = found[2]
    if found[0].lstrip().startswith("%pip"):
        command = f"{sys.executable} -m pip {command}"
    return f"{found[1]}__import__('subprocess').call({command!r}, shell=True)"


def _text(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001  # __repr__ of a tenant's class
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}… ({len(text)} characters)"


def _call(value: Any, method: str) -> Any:
    try:
        return getattr(value, method)()
    except Exception:  # noqa: BLE001  # a form that cannot be made is no form
        return None


def _plain(data: Any) -> Any:
    if isinstance(data, bytes):
        return base64.b64encode(data).decode()
    return data if isinstance(data, str) else json.loads(json.dumps(data, default=str))


def _table(value: Any) -> dict[str, Any] | None:
    """A small data frame as columns."""
    if type(value).__module__.split(".")[0] != "pandas" or type(value).__name__ != "DataFrame" or value.size > 10_000:
        return None
    found: dict[str, Any] = json.loads(json.dumps(value.to_dict(orient="list"), default=str))
    return found


def _chart(figure: Any) -> dict[str, Any] | None:
    """The numbers of the first axes: lines, points, bars or slices."""
    axes = figure.axes[0] if figure.axes else None
    if axes is None:
        return None
    head = {"title": axes.get_title(), "x_label": axes.get_xlabel(), "y_label": axes.get_ylabel()}
    head = {name: text or None for name, text in head.items()}
    wedges = [patch for patch in axes.patches if type(patch).__name__ == "Wedge"]
    bars = [patch for patch in axes.patches if type(patch).__name__ == "Rectangle"]
    if wedges:
        labels = [text.get_text() for text in axes.texts]
        elements = [
            {"label": labels[i] if i < len(labels) else "", "angle": w.theta2 - w.theta1, "radius": w.r}
            for i, w in enumerate(wedges)
        ]
        return {"type": "pie", "title": head["title"], "elements": elements}
    if bars:
        ticks = {
            round(tick, 6): text.get_text()
            for tick, text in zip(axes.get_xticks(), axes.get_xticklabels(), strict=False)
        }
        values = [(ticks.get(round(b.get_x() + b.get_width() / 2, 6), ""), float(b.get_height())) for b in bars]
        elements = [{"label": label, "value": value, "group": ""} for label, value in values]
        return {"type": "bar", **head, "x_unit": None, "y_unit": None, "elements": elements}
    series: list[Any] = [
        {"label": line.get_label(), "points": _points(line.get_xdata(), line.get_ydata())} for line in axes.lines
    ]
    kind = "line"
    if not series:
        kind = "scatter"
        series = [
            {"label": part.get_label(), "points": [list(map(float, pair)) for pair in part.get_offsets()]}
            for part in axes.collections
        ]
    if not series:
        return None
    scales = {f"{axis}_scale": getattr(axes, f"get_{axis}scale")() for axis in "xy"}
    places: dict[str, Any] = {f"{axis}_ticks": [float(t) for t in getattr(axes, f"get_{axis}ticks")()] for axis in "xy"}
    names: dict[str, Any] = {
        f"{axis}_tick_labels": [t.get_text() for t in getattr(axes, f"get_{axis}ticklabels")()] for axis in "xy"
    }
    return {"type": kind, **head, "x_unit": None, "y_unit": None, **scales, **places, **names, "elements": series}


def _points(xs: Any, ys: Any) -> list[list[Any]]:
    return [
        [x.item() if hasattr(x, "item") else x, y.item() if hasattr(y, "item") else y]
        for x, y in zip(xs, ys, strict=False)
    ]
