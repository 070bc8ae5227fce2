"""Tracking in MLflow: study = parent run, trial = child run; it never stops or delays a training."""

from retune.tracking.boards import Boards, open_boards
from retune.tracking.runs import tracking_uri, trial_run
from retune.tracking.tracker import Tracker

__all__ = ["Boards", "Tracker", "open_boards", "tracking_uri", "trial_run"]
