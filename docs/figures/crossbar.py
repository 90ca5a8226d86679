"""Draws docs/figures/crossbar.svg: how a crossbar computes a product. `python docs/figures/crossbar.py`."""

from pathlib import Path

INK, BLUE, RED, GREY, PALE = "#222222", "#1f6fb4", "#c0392b", "#777777", "#eef3f8"
ROWS, PAIRS = 4, 3
LEFT, TOP, ROW_STEP, PAIR_STEP, IN_PAIR = 250, 66, 62, 150, 56


def text(x: float, y: float, words: str, size: int = 15, anchor: str = "middle", color: str = INK) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{color}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, color: str = INK, width: float = 1.6, arrow: bool = False) -> str:
    head = ' marker-end="url(#tip)"' if arrow else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="{width}"{head}/>'


def box(x: float, y: float, width: float, height: float, words: str, fill: str = PALE) -> str:
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" stroke="{INK}"/>'
    return shape + text(x + width / 2, y + height / 2 + 5, words)


def device(x: float, y: float, color: str) -> str:
    """A conductance between a row and a column."""
    return (
        line(x - 15, y, x - 15, y + 10, color)
        + f'<rect x="{x - 20}" y="{y + 10}" width="10" height="20" fill="white" stroke="{color}" stroke-width="1.6"/>'
        + line(x - 15, y + 30, x - 15, y + 38, color)
        + line(x - 15, y + 38, x, y + 38, color)
    )


def picture() -> str:
    """The SVG."""
    parts = []
    right = LEFT + (PAIRS - 1) * PAIR_STEP + IN_PAIR + 20
    bottom = TOP + (ROWS - 1) * ROW_STEP + 62
    for row in range(ROWS):
        y = TOP + row * ROW_STEP
        parts += [text(54, y + 5, f"x{row + 1}"), line(70, y, 112, y, arrow=True), box(120, y - 16, 62, 32, "DAC")]
        parts += [line(182, y, right, y, BLUE)]
    for pair in range(PAIRS):
        plus = LEFT + pair * PAIR_STEP
        minus = plus + IN_PAIR
        for x, color in ((plus, RED), (minus, GREY)):
            parts += [line(x, TOP - 18, x, bottom, color)]
            parts += [device(x, TOP + row * ROW_STEP, color) for row in range(ROWS)]
        parts += [text(plus, TOP - 26, "G+", 14, color=RED), text(minus, TOP - 26, "G-", 14, color=GREY)]
        middle = (plus + minus) / 2
        parts += [line(plus, bottom, middle - 6, bottom + 26, RED), line(minus, bottom, middle + 6, bottom + 26, GREY)]
        parts += [f'<circle cx="{middle}" cy="{bottom + 34}" r="13" fill="white" stroke="{INK}"/>']
        parts += [text(middle, bottom + 39, "&#8722;"), line(middle, bottom + 47, middle, bottom + 58, arrow=True)]
        parts += [box(middle - 31, bottom + 66, 62, 32, "ADC")]
        parts += [line(middle, bottom + 98, middle, bottom + 114, arrow=True)]
        parts += [text(middle, bottom + 140, f"y{pair + 1} of this tile")]
    notes = right + 26
    for y, words, more in (
        (TOP - 4, "1  inputs become voltages", "scaled, rounded, clipped"),
        (TOP + 58, "2  weights are conductances", "written with errors, drifting, stuck"),
        (TOP + 120, "3  currents add up in a column", "with noise, along wires with resistance"),
        (bottom - 2, "4  pairs are subtracted", "so a weight may be negative"),
        (bottom + 78, "5  currents become numbers", "noise, range, rounding"),
        (bottom + 136, "6  tiles are added digitally", "with the scale of each column"),
    ):
        parts += [text(notes, y, words, 15, "start"), text(notes + 18, y + 20, more, 13, "start", GREY)]
    width, height = notes + 290, bottom + 176
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" role="img" '
        'aria-label="A crossbar: inputs drive rows, currents of pairs of devices add up in columns">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), "utf-8")
