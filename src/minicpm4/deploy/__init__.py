"""Running a model well on a given machine: for now, measuring how fast it runs."""
