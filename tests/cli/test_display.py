"""What a run displays: the announced counts, and a line for each running trial."""

import io

import pytest
from rich.console import Console

from retune.cli._show import Display
from retune.workspace.progress import Progress


def shown(terminal: bool, *steps: Progress, width: int = 150, states: dict[str, bool] | None = None) -> str:
    out = io.StringIO()
    display = Display(states or {"search": False})
    display._console = Console(file=out, force_terminal=terminal, width=width, highlight=False)
    display._bar.live.console = display._console
    display._bar.disable = not terminal
    with display:
        for step in steps:
            display.update(step)
            if terminal:
                display._bar.refresh()
    return out.getvalue()


WORKING = Progress(
    step="search", done=2, total=8, settings=3, settings_done=1, best=1.5, running={"trial-002": 0.25, "trial-003": 0.5},
    epochs={"trial-002": 0.5}, losses={"trial-002": 2.3456},
)  # fmt: skip


def test_a_log_counts_the_settings_that_were_announced():
    assert "search: 1 of 3 settings (2 of 8 trials, with base and repeats), best 1.5000" in shown(
        False, WORKING
    )


def test_a_line_of_a_log_stays_one_line():
    assert len(shown(False, WORKING, width=40).splitlines()) == len(shown(False, WORKING).splitlines())


def test_a_log_counts_no_trials_before_there_are_any():
    begun = Progress(step="search")
    assert "0 of 0" not in shown(False, begun, WORKING)


def test_a_terminal_shows_each_trial_at_work_and_takes_it_away_when_it_is_done():
    text = shown(True, WORKING)
    assert "1 of 3 settings" in text
    assert "trial-002" in text
    assert "epoch 0.5, loss 2.3456" in text
    assert ("2/8" in text, "25 %" in text) == (True, True)
    later = WORKING.model_copy(update={"running": {"trial-003": 0.6}, "done": 3})
    last = shown(True, WORKING, later).rpartition("trial-003")[0].rpartition("search:")[2]
    assert "trial-002" not in last


@pytest.mark.parametrize("step", ["mix", "benchmark"])
def test_other_steps_show_no_settings(step):
    assert "settings" not in shown(True, Progress(step=step, total=4, done=1, running={"mmlu": 0.5}))


def test_every_step_of_a_log_ends_with_its_line_however_short_it_was():
    states = {"mix": True, "search": False, "benchmark": False, "select": False, "register": False}
    seen = [Progress(step="mix"), WORKING, Progress(step="select")]
    lines = shown(False, *seen, states=states).splitlines()
    assert [line for line in lines if line.startswith("✓")] == [
        "✓ mix the data: up to date", "✓ search", "✓ benchmark", "✓ select", "✓ register",
    ]  # fmt: skip


def test_a_step_that_fails_has_no_such_line():
    out = io.StringIO()
    display = Display({"mix": False, "search": False})
    display._console = Console(file=out, force_terminal=False, width=150, highlight=False)

    def fails() -> None:
        with display:
            display.update(WORKING)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert "✓ mix the data" in out.getvalue()
    assert "✓ search" not in out.getvalue()


def test_no_time_is_told_before_it_is_known():
    assert "time left not known yet" in shown(False, WORKING)
    assert "about 48 s left" in shown(False, WORKING.model_copy(update={"left": 47.5}))
