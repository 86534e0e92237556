"""Pictures in Markdown, as the Prefect UI shows them."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape

from texts.words import markdown

WIDTH = 560
"""Pixels, no more than the UI gives an artifact's text."""
_ROW, _NAMES, _BARS = 26, 190, 280
_COLOUR = "#2f6fed"


def bars(title: str, values: Mapping[str, float], unit: str = "") -> str:
    """Return a picture of one bar for each value.

    Args:
        title: What the values are.
        values: The values by their names.
        unit: Their unit, behind each number.

    Returns:
        An image that holds its own data, with the numbers as its alternative text; empty without
        values.
    """
    if not values:
        return ""
    most = max(*values.values(), 0.0) or 1.0
    rows = []
    for place, (name, value) in enumerate(values.items()):
        y = place * _ROW
        width = max(2, round(_BARS * value / most))
        rows += [
            f'<text x="{_NAMES - 8}" y="{y + 17}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_NAMES}" y="{y + 4}" width="{width}" height="{_ROW - 8}" rx="3" '
            f'fill="{_COLOUR}"/>',
            f'<text x="{_NAMES + width + 8}" y="{y + 17}">{_shown(value)}{unit}</text>',
        ]
    height = len(values) * _ROW + 4
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>{"".join(rows)}</svg>'
    )
    told = ", ".join(f"{name} {_shown(value)}{unit}" for name, value in values.items())
    data = b64encode(picture.encode()).decode()
    return f"![{markdown(title)}: {markdown(told)}](data:image/svg+xml;base64,{data})"


def _shown(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
