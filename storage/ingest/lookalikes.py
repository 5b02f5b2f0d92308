"""Ids that differ but look the same: kept apart, and said aloud."""

from storage.ingest.engine import Engine

_LENGTH = 15
"""Longest id compared as a number: beyond it two whole numbers may share one double."""


def lookalike_notices(engine: Engine) -> list[str]:
    """Warn of ids that another reader would merge.

    Args:
        engine: Holds ``user_codes`` and ``item_codes`` with a text column ``id``.

    Returns:
        Sentences; empty where there are none.
    """
    notices = []
    for table, what in (("user_codes", "user"), ("item_codes", "item")):
        number = f"CASE WHEN length(id) <= {_LENGTH} THEN try_cast(id AS DOUBLE) END"
        seen = "regexp_replace(nfc_normalize(id), '[\u200b-\u200f\u2060\ufeff\u00ad]', '', 'g')"
        for key, why in (
            (number, "equal as numbers (such as 007 and 7, or 1.0 and 1)"),
            (seen, "equal to the eye (composed characters or invisible ones)"),
        ):
            pairs = engine.rows(
                f"""SELECT count(*) OVER (), list(id ORDER BY id)[1:2] FROM {table} WHERE {key} IS NOT NULL
                GROUP BY {key} HAVING count(*) > 1 ORDER BY min(id) LIMIT 1"""
            )
            if pairs:
                count, (one, other) = pairs[0]
                notices.append(f"{count} {what} ids are kept apart though {why}: for example {one!r} and {other!r}.")
    return notices
