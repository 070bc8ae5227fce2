"""Tracking in MLflow: a study is a parent run, a trial a child run. Tracking never stops or delays a training."""

from retune.tracking.boards import Boards, open_boards
from retune.tracking.runs import tracking_uri, trial_run
from retune.tracking.tracker import Tracker

__all__ = ["Boards", "Tracker", "open_boards", "tracking_uri", "trial_run"]
