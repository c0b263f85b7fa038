"""Running a model well on a given machine: measuring how fast it runs, checking that everything is in order."""

from minicpm4.deploy.bench import BenchOptions, BenchResult, run_bench
from minicpm4.deploy.doctor import Check, check_machine, check_model, try_executor
from minicpm4.deploy.subject import Subject, checkpoint_subject, random_subject

__all__ = [
    "BenchOptions",
    "BenchResult",
    "Check",
    "Subject",
    "check_machine",
    "check_model",
    "checkpoint_subject",
    "random_subject",
    "run_bench",
    "try_executor",
]
