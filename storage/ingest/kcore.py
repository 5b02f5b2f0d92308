"""Iterative k-core of the bipartite graph of interactions, to the fixed point."""

from storage.ingest.engine import Engine


def k_core(engine: Engine, *, source: str, target: str, min_user: int, min_item: int) -> int:
    """Drop users and items with few interactions until none is left to drop.

    Interactions count with their repetitions. The result does not depend on which side is dropped first:
    the k-core is the largest set that holds both bounds.

    Args:
        engine: Holds the table ``source`` with columns ``u`` and ``i``.
        source: A table's name; left as it is.
        target: Name of the table to make, with the same columns.
        min_user: Fewest interactions of a user.
        min_item: Fewest interactions of an item.

    Returns:
        Rounds in which something was dropped.
    """
    rounds, left = 0, source
    while True:
        n_rare = 0
        for side, least in (("i", min_item), ("u", min_user)):
            engine.run(
                f"""CREATE OR REPLACE TEMP TABLE rare AS
                SELECT {side} AS code FROM {left} GROUP BY {side} HAVING count(*) < $least""",
                {"least": least},
            )
            n = engine.number("SELECT count(*) FROM rare")
            n_rare += n
            if n or left == source:  # the core is in a table of its own in any case
                engine.run(
                    f"""CREATE OR REPLACE TEMP TABLE {target} AS SELECT * FROM {left}
                    WHERE {side} NOT IN (SELECT code FROM rare)"""
                )
                left = target
        if not n_rare:
            return rounds
        rounds += 1


def largest_core(engine: Engine, *, source: str, min_user: int, min_item: int) -> tuple[int, int, int, int]:
    """Find the strictest bounds, none above those wanted, that leave something.

    Args:
        engine: Holds the table ``source`` with columns ``u`` and ``i``, not empty.
        source: A table's name.
        min_user: Bound wanted for users; it left nothing.
        min_item: Bound wanted for items.

    Returns:
        Bound for users, bound for items, users left, items left.
    """
    low, high = 1, max(min_user, min_item)
    while high - low > 1:
        middle = (low + high) // 2
        _bounded(engine, source, min_user, min_item, middle)
        if engine.number("SELECT count(*) FROM trial"):
            low = middle
        else:
            high = middle
    _bounded(engine, source, min_user, min_item, low)
    users = engine.number("SELECT count(DISTINCT u) FROM trial")
    items = engine.number("SELECT count(DISTINCT i) FROM trial")
    return min(low, min_user), min(low, min_item), users, items


def _bounded(engine: Engine, source: str, min_user: int, min_item: int, k: int) -> None:
    k_core(engine, source=source, target="trial", min_user=min(k, min_user), min_item=min(k, min_item))
