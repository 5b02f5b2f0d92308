"""What the records of experiments refer to, so that garbage collection keeps it."""

from p2rec_core.errors import StoreError
from storage.artefacts import ArtefactRef, Store
from storage.disk import os_errors
from storage.manifest import parse_digested
from tasks.experiments import record_path, recorded


def experiment_references(store: Store) -> dict[str, list[ArtefactRef]]:
    """The artefacts of all experiments, by ``experiment NAME``.

    Only that part of a record is read: an experiment whose settings this version no longer knows keeps its artefacts.

    Raises:
        StoreError: A record is damaged, or a newer P2Rec wrote it.
    """
    return {f"experiment {name}": record_references(store, name) for name in recorded(store)}


def record_references(store: Store, name: str) -> list[ArtefactRef]:
    """The artefacts of one experiment; raises as ``experiment_references`` does."""
    path = record_path(store, name)
    with os_errors(path):
        data = path.read_bytes()
    try:
        fields = parse_digested(data, str(path))
        return [ArtefactRef.from_json(ref) for ref in fields["artefacts"].values()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged, so that what the experiment refers to cannot be told: {error}.",
            remedy=f"Run `p2rec experiment run {name}` to write it anew, or remove that file.",
        ) from error
