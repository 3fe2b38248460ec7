"""The benchmark: interpreters, models, datasets, metrics, and what turns a suite into leaderboards."""

__version__ = "0.1.0"
