"""The sequence encoders by name. A new one is a file and an entry here.

Nothing is imported from an encoder's module until one is built, so that looking at settings loads no model code. The
file is not part of a stage's code fingerprint: the defaults are in the key as settings, and the module of the encoder
that is used is fingerprinted by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from p2rec_core.errors import SettingsError, did_you_mean


@dataclass(frozen=True)
class Entry:
    """One encoder.

    Attributes:
        module: Where its class is; the only encoder there.
        name: The class.
        title: What a person calls it.
        defaults: Every setting that it reads, with its default: the keyword parameters of the class.
            ``hidden_size`` and ``max_length`` are read by all.
    """

    module: str
    name: str
    title: str
    defaults: Mapping[str, int | float]


DEFAULT_BACKBONE = "sasrec"

ENCODERS: dict[str, Entry] = {
    "sasrec": Entry(
        module="p2rec_core.backbones.sasrec",
        name="SASRec",
        title="SASRec",
        defaults={
            "hidden_size": 64,
            "n_layers": 2,
            "n_heads": 2,
            "inner_size": 256,
            "dropout": 0.5,
            "max_length": 50,
        },
    ),
    "gru4rec": Entry(
        module="p2rec_core.backbones.gru4rec",
        name="GRU4Rec",
        title="GRU4Rec",
        defaults={"hidden_size": 64, "inner_size": 128, "dropout": 0.3, "max_length": 50},
    ),
    "caser": Entry(
        module="p2rec_core.backbones.caser",
        name="Caser",
        title="Caser",
        defaults={
            "hidden_size": 64,
            "window": 5,
            "n_horizontal": 16,
            "n_vertical": 4,
            "dropout": 0.5,
            "max_length": 50,
        },
    ),
    "fmlp_rec": Entry(
        module="p2rec_core.backbones.fmlp_rec",
        name="FMLPRec",
        title="FMLP-Rec",
        defaults={"hidden_size": 64, "n_layers": 2, "inner_size": 256, "dropout": 0.5, "max_length": 50},
    ),
}


def encoder_entry(backbone: str) -> Entry:
    """The entry of a name.

    Raises:
        SettingsError: No encoder has that name.
    """
    if backbone not in ENCODERS:
        hint = did_you_mean(backbone, ENCODERS)
        raise SettingsError(
            f"There is no backbone {backbone!r}{f' ({hint})' if hint else ''}.",
            remedy=f"Choose one of: {', '.join(sorted(ENCODERS))}.",
        )
    return ENCODERS[backbone]
