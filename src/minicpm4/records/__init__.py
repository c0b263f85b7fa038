"""The ground floor of everything that is long or written: an atomic writer, a journal, a recipe. Knows no model."""

from minicpm4.records.atomic import atomic_file, write_atomic
from minicpm4.records.journal import Journal
from minicpm4.records.recipe import software_facts, source_commit

__all__ = ["Journal", "atomic_file", "software_facts", "source_commit", "write_atomic"]
