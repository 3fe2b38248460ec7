"""The benchmark: interpreters, models, datasets, metrics, and the harness that turns a suite into leaderboards."""

__version__ = "0.1.0"
