"""The base, data and study of tests/training."""

from tests.training.conftest import base, base_folder, data, limited, one_thread, study, task

__all__ = ["base", "base_folder", "data", "limited", "one_thread", "study", "task"]
