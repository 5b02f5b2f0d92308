"""The language model as stages open it: what its key says, and loading it on the run's device."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2rec_core.settings.language import Dtype, LanguageModelSettings
from p2rec_core.settings.pipeline import RuntimeSettings
from tasks.arrays import vectors
from tasks.stage import StageContext

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from p2rec_core.language.loading import LanguageModel
    from p2rec_core.language.prompt import Prompt

NOT_READ_WITH_ITEMS = {"name_or_path", "revision", "item_text", "max_text_tokens"}
"""Settings that say nothing of how items are read: the weights count, not where they lie, and the texts come as an
artefact of their own."""


@dataclass(frozen=True)
class OpenedModel:
    """A language model on its device.

    Attributes:
        language_model: The model.
        device: Where it is.
        autocast: Number format of activations; None leaves it to the weights.
    """

    language_model: "LanguageModel"
    device: "torch.device"
    autocast: "torch.dtype | None"

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"language_model": self.language_model.label, "random_init": self.language_model.random_init}

    def preference_prompt(self, settings: LanguageModelSettings, n_clusters: int) -> "Prompt":
        """The prompt of P2Rec's examples."""
        from p2rec_core.language.prompt import build_prompt

        return build_prompt(
            self.language_model.tokenizer,
            settings.instruction,
            settings.response,
            causal=self.language_model.causal,
            n_clusters=n_clusters,
        )

    def next_item_prompt(self, instruction: str, response: str) -> "Prompt":
        """The prompt of E4SRec's examples, which has no BOS."""
        from p2rec_core.language.prompt import build_prompt

        return build_prompt(
            self.language_model.tokenizer, instruction, response, causal=self.language_model.causal, bos=False
        )


def language_model_source(settings: LanguageModelSettings, *, seed: int) -> dict[str, str]:
    """The language model's weights as a source of a stage: they count, not where they lie.

    Raises:
        ModelError: There is no such language model on this machine.
    """
    from p2rec_core.language.identity import model_identity

    return {"language-model": model_identity(settings.name_or_path, settings.revision, seed=seed)}


def open_language_model(settings: LanguageModelSettings, runtime: RuntimeSettings, *, seed: int) -> OpenedModel:
    """Load the language model on the run's device.

    Args:
        settings: Which one, and in which number format.
        runtime: Device and threads.
        seed: Seed of the built-in random models' weights.

    Raises:
        ModelError: There is no such language model, or it cannot be used.
        SettingsError: The device is not there.
    """
    import torch

    from p2rec_core.language.loading import load_language_model
    from p2rec_core.runtime import prepared_device

    device = prepared_device(runtime.device, runtime.threads)
    loaded = load_language_model(
        settings.name_or_path,
        revision=settings.revision,
        dtype=settings.dtype,
        quantisation=settings.quantisation,
        device=device,
        seed=seed,
    )
    # on a CPU the linear layers do it themselves
    narrow = settings.dtype is Dtype.BFLOAT16 and device.type != "cpu"
    return OpenedModel(loaded, device, torch.bfloat16 if narrow else None)


def read_items(context: StageContext) -> "tuple[NDArray[np.float32], NDArray[np.bool_]]":
    """What a language model reads of every item, and whether it says anything; see ``text.item_features``.

    Args:
        context: Has the input ``embeddings`` and, where the items' texts are read too, ``texts``.
    """
    from p2rec_core.language.text import item_features

    embeddings = context.table("embeddings")
    text = vectors(context.table("texts", ["embedding"]), "embedding") if "texts" in context.inputs else None
    return item_features(vectors(embeddings, "embedding"), embeddings.column("trained").to_numpy(), text)
