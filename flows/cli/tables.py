"""Tables: drawn on a terminal, and lines of tab-separated values elsewhere."""

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(table: Table, *, markup: bool = False) -> None:
    """Print a table to the standard output.

    On a terminal it is drawn, with colours unless ``NO_COLOR`` is set. Into a file or a pipe it is written as its
    title, a line of names and a line per row, whole values separated by tabs, so that nothing is cut off.

    Args:
        table: The table; its cells are texts.
        markup: Whether square brackets in cells are rich's markup.
    """
    console = Console()
    if console.is_terminal:
        console.print(table, markup=markup)
        return
    columns = [[_plain(cell, markup) for cell in (column.header, *column.cells)] for column in table.columns]
    lines = [] if table.title is None else [_plain(table.title, markup).strip()]
    lines += ["\t".join(row).rstrip() for row in zip(*columns, strict=True)]
    console.file.write("".join(f"{line}\n" for line in lines))


def _plain(cell: object, markup: bool) -> str:
    text = cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain if markup else str(cell)
    return ", ".join(part for part in text.replace("\t", " ").splitlines() if part)
