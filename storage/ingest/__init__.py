"""Foreign interaction files into tables: reading, judging, filtering, numbering, splitting."""

from storage.ingest.load import RawInteractions, read_interactions
from storage.ingest.pipeline import IngestResult, ingest
from storage.ingest.source import sha256_of
from storage.ingest.statistics import describe

__all__ = ["IngestResult", "RawInteractions", "describe", "ingest", "read_interactions", "sha256_of"]
