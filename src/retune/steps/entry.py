"""What every component does first: read the study, keep libraries quiet, and end with the run it belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from retune import models
from retune.processes import die_with_run
from retune.study import Study, parse


@contextmanager
def entry(study: str) -> Iterator[Study]:
    """Yield the study that a component got as JSON.

    Raises:
        InputError: with every problem found in it.

    """
    die_with_run()
    models.quiet()
    yield parse(json.loads(study))
