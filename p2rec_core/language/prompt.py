"""The text around a user's items, as token ids (paper, section 4.1.2)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2rec_core.errors import SettingsError


@dataclass(frozen=True)
class Prompt:
    """What stands before and after the items.

    Attributes:
        instruction: Token ids before the items, int64 (P,), the special token that opens a text included.
        response: Token ids after the items, int64 (R,), the special token that closes a text included. R >=
            1.
    """

    instruction: NDArray[np.int64]
    response: NDArray[np.int64]

    @property
    def n_tokens(self) -> int:
        """Tokens that every example has beside its items."""
        return len(self.instruction) + len(self.response)


def build_prompt(
    tokenizer: Any, instruction: str, response: str, *, causal: bool, n_clusters: int | None = None, bos: bool = True
) -> Prompt:
    """Turn the prompt's two texts into token ids.

    An encoder reads ``[CLS] instruction items response [SEP]``. A causal model reads
    ``BOS instruction items response``, without BOS if its tokenizer has none: nothing may follow the
    response, whose last state is what the paper takes as h.

    Args:
        tokenizer: A Hugging Face tokenizer.
        instruction: Text before the items; ``{n_clusters}`` in it stands for the number of clusters.
        response: Text after the items.
        causal: Whether the language model is causal.
        n_clusters: Number of clusters K; None leaves the instruction as it is.
        bos: Whether a causal model's BOS is put in front, which E4SRec does not.

    Raises:
        SettingsError: The response has no token, so there is no state to read h from.

    Source: Liu et al. 2024, section 4.1.2. Deviation: the special tokens are not mentioned there.
    """
    if n_clusters is not None:
        instruction = instruction.replace("{n_clusters}", str(n_clusters))
    before = tokenizer.encode(instruction, add_special_tokens=False)
    after = tokenizer.encode(response, add_special_tokens=False)
    if not after:
        raise SettingsError(
            f"The prompt's response {response!r} has no token.", remedy="Give a text such as 'Response:'."
        )
    opening = tokenizer.bos_token_id if causal else tokenizer.cls_token_id
    closing = None if causal else tokenizer.sep_token_id
    if opening is not None and (bos or not causal):
        before = [opening, *before]
    if closing is not None:
        after = [*after, closing]
    return Prompt(np.asarray(before, np.int64), np.asarray(after, np.int64))
