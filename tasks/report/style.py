"""How figures look, and how they become bytes: the same bytes every time.

Colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart; every arm has its
marker and line style besides.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from p2rec_core.analysis.results import Roles

INK = "#1b1f24"
MUTED = "#5b6470"
RULE = "#d5d9de"
PAPER_INK = "#1b1f24"
SHARES = (("#0072B2", "#ffffff"), ("#56B4E9", "#1b1f24"), ("#dfe3e8", "#1b1f24"))
"""Fill and text of the cases C1, C2, C3."""

_PNG_DPI = 160
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 10.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 10.0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
    "svg.fonttype": "path",
    "svg.hashsalt": "p2rec",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Look:
    """How an arm looks in every figure.

    Attributes:
        colour: Of Okabe and Ito.
        marker: Shape of its points.
        line: Style of its lines.
    """

    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


_MAIN = (Look("#5b6470", "o", "-"), Look("#E69F00", "s", (0, (5, 2))), Look("#0072B2", "D", "-"))
_FURTHER = (
    Look("#009E73", "^", (0, (1, 1))),
    Look("#CC79A7", "v", (0, (4, 1, 1, 1))),
    Look("#D55E00", "P", (0, (3, 1))),
    Look("#56B4E9", "X", (0, (6, 2, 1, 2))),
    Look("#8f7a00", "p", (0, (2, 2))),
)
RIVAL = Look("#D55E00", "s", "-")
"""The look of E4SRec beside P2Rec."""


def look(arm: str, roles: Roles) -> Look:
    """The look of an arm; the same in every figure of a report."""
    if arm in roles.main:
        return _MAIN[roles.main.index(arm)]
    place = roles.ablations.index(arm) if arm in roles.ablations else len(roles.ablations)
    return _FURTHER[place % len(_FURTHER)]


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of the house, whatever the user's own matplotlib settings say."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing.*")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, with room for its labels found by itself."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.06, hspace=0.06)
    return Figure(figsize=(width, height), layout=layout)


def settle(figure: Figure) -> Figure:
    """Find the room for labels once, so that no format that the figure is saved in has to find it again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def plain_axes(axes: Axes, *, grid: Literal["x", "y"] = "y") -> None:
    """Light guide lines along one axis and no tick marks."""
    axes.grid(axis=grid)
    axes.tick_params(length=0)


def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG, without the time and the program that made it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """A figure as SVG with its text as outlines, which looks the same wherever it is opened."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def inline_svg(figure: Figure, prefix: str) -> str:
    """A figure as an element of an HTML page.

    Args:
        figure: The figure.
        prefix: Goes before every identifier in it, so that several figures can share a page.
    """
    text = svg_bytes(figure).decode("utf-8")
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 {_NAMESPACES} aria-hidden="true">', text, count=1)
    return re.sub(r">\s+<", "><", text).strip()


_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
