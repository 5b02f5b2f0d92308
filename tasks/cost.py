"""What the language model costs P2Rec and E4SRec: tokens, and seconds on this machine (paper, RQ2)."""

from typing import Any

import pyarrow as pa

from p2rec_core.settings.language import CostSettings, E4SRecSettings, FinetuneSettings, LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import ragged, targets, vectors
from tasks.language_model import (
    NOT_READ_WITH_ITEMS,
    OpenedModel,
    language_model_source,
    open_language_model,
    read_items,
)
from tasks.preferences import finer_groupings
from tasks.stage import StageCall, StageContext


def cost_call(
    language_model: LanguageModelSettings,
    finetune: FinetuneSettings,
    e4srec: E4SRecSettings,
    settings: CostSettings,
    *,
    ingest: ArtefactRef,
    backbone: ArtefactRef,
    clusters: ArtefactRef,
    preferences: ArtefactRef,
    text: ArtefactRef | None = None,
) -> StageCall:
    """The measurement of both methods in one run.

    A measurement is kept like any other result: on another machine or device it has to be forced. The manifest says
    where it was taken.

    Args:
        language_model: The language model, and P2Rec's prompt and pooling.
        finetune: P2Rec's training.
        e4srec: E4SRec's prompt, pooling and training.
        settings: How much is timed.
        ingest: Sequences and validation items, which E4SRec reads to recommend.
        backbone: Item embeddings.
        clusters: The finer groupings, whose preferences P2Rec tells beside.
        preferences: What P2Rec tells.
        text: Embeddings of the items' texts, which P2Rec reads beside the backbone's; None where there are none.

    Raises:
        ModelError: There is no such language model on this machine.
    """

    def compute(context: StageContext) -> dict[str, Any]:
        return _measure(context, language_model, finetune, e4srec, settings)

    return StageCall(
        stage="cost",
        module="tasks.cost",
        settings={
            "language_model": language_model.model_dump(mode="json", exclude=NOT_READ_WITH_ITEMS),
            "finetune": finetune.model_dump(mode="json", include=_P2REC),
            "e4srec": e4srec.model_dump(mode="json", include=_E4SREC),
            "cost": settings.model_dump(mode="json"),
        },
        inputs={
            "sequences": (ingest, "sequences"),
            "validation": (ingest, "validation"),
            "embeddings": (backbone, "item_embeddings"),
            "preferences": (preferences, "user_preferences"),
            "finer": (clusters, "finer_clusters"),
            **({} if text is None else {"texts": (text, "item_texts")}),
        },
        compute=compute,
        sources=language_model_source(language_model, seed=settings.seed),
    )


_MODEL = {"lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "gradient_checkpointing"}
_P2REC = {*_MODEL, "batch_users", "micro_batch_tokens", "max_length", "max_grad_norm"}
_INSTANCES = {"n_last_targets", "max_history", "drop_empty_history"}
_E4SREC = {*_MODEL, *_INSTANCES, "instruction", "response", "pooling", "batch_instances", "micro_batch_tokens"}


def _measure(
    context: StageContext,
    language_model: LanguageModelSettings,
    finetune: FinetuneSettings,
    e4srec: E4SRecSettings,
    settings: CostSettings,
) -> dict[str, Any]:
    from p2rec_core.language.cost import measure_cost

    opened = open_language_model(language_model, context.runtime, seed=settings.seed)
    users, instances = _objectives(context, opened, language_model, finetune, e4srec, settings)
    sequences = ragged(context.table("sequences"))
    validation = targets(context.table("validation"), len(sequences))
    result = measure_cost(
        users,
        instances,
        sequences.appended(validation),
        **settings.model_dump(exclude={"shared_prefix"}),
        item_batch_size=context.runtime.knowledge_batch_size,
        max_history=e4srec.max_history,
        max_grad_norm=finetune.max_grad_norm,
        device=opened.device,
        autocast=opened.autocast,
        progress=context.progress,
    )
    rows = [
        {
            "method": phase.method,
            "phase": phase.phase,
            "level": phase.level,
            "n_instances": phase.n_instances,
            "n_tokens": phase.n_tokens,
            "n_tokens_measured": phase.n_tokens_measured,
            "seconds_measured": phase.seconds_measured,
            "seconds_per_epoch": phase.seconds_per_epoch,
        }
        for phase in result.phases
    ]
    kinds = [pa.string()] * 3 + [pa.int64()] * 3 + [pa.float64()] * 2
    context.writer.table(
        "language_model_cost",
        pa.Table.from_pylist(rows, schema=pa.schema(list(zip(rows[0], kinds, strict=True)))),
    )
    return opened.facts() | {
        "rounds": result.rounds,
        "ratios": result.ratios(),
        "phases": [
            {"method": p.method, "phase": p.phase, "step_size": p.step_size, "fraction": p.fraction}
            | {"seconds_per_token": p.seconds_per_token, "seconds_per_epoch": p.seconds_per_epoch}
            for p in result.phases
        ],
    }


def _objectives(
    context: StageContext,
    opened: OpenedModel,
    language_model: LanguageModelSettings,
    finetune: FinetuneSettings,
    e4srec: E4SRecSettings,
    settings: CostSettings,
) -> Any:
    """Both methods' trainings, on one language model."""
    from p2rec_core.language.batching import Sequences
    from p2rec_core.language.e4srec import InstanceObjective
    from p2rec_core.language.finetune import UserObjective, n_outputs, split_users
    from p2rec_core.language.instances import next_item_instances
    from p2rec_core.language.next_item_model import NextItemLanguageModel
    from p2rec_core.language.preference_model import PreferenceLanguageModel

    item_features, says_anything = read_items(context)
    embeddings = context.table("embeddings")
    preferences = vectors(context.table("preferences"), "preference")
    sequences = ragged(context.table("sequences"))
    finer = finer_groupings(context, sequences)
    common: dict[str, Any] = {"shared_prefix": settings.shared_prefix, "seed": settings.seed}
    preference_model = PreferenceLanguageModel(
        opened.language_model,
        opened.preference_prompt(language_model, preferences.shape[1]),
        item_features,
        says_anything,
        n_outputs(preferences, finer),
        pooling=language_model.pooling,
        **finetune.model_dump(include=_MODEL),
        **common,
    )
    next_item_model = NextItemLanguageModel(
        opened.language_model,
        opened.next_item_prompt(e4srec.instruction, e4srec.response),
        vectors(embeddings, "embedding"),
        embeddings.column("trained").to_numpy(),
        pooling=e4srec.pooling,
        **e4srec.model_dump(include=_MODEL),
        **common,
    )
    read = Sequences(sequences.items, sequences.offsets, finetune.max_length)
    training, nobody = split_users(read.lengths, 0.0, settings.seed)
    users = UserObjective(
        preference_model,
        read,
        preferences,
        training,
        nobody,
        finetune.batch_users,
        finetune.micro_batch_tokens,
        settings.seed,
        finer=finer,
    )
    instances = InstanceObjective(
        next_item_model,
        next_item_instances(sequences, **e4srec.model_dump(include=_INSTANCES)),
        e4srec.batch_instances,
        e4srec.micro_batch_tokens,
        epochs=1,
        max_steps=None,
        seed=settings.seed,
    )
    return users, instances
