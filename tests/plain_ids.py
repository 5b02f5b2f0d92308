"""Names of parametrised tests without quotes, brackets and control characters, for tools that pass names around.

Used as a plugin: ``pytest -p tests.plain_ids``.
"""

import hashlib
import re


def pytest_make_parametrize_id(val: object, argname: str) -> str:
    """Letters and digits of the value, and a few digits of its hash."""
    shown = re.sub(r" at 0x[0-9a-f]+", "", repr(val))
    return f"{argname}_{re.sub(r'[^A-Za-z0-9]+', '_', shown)[:24]}_{hashlib.sha256(shown.encode()).hexdigest()[:8]}"
