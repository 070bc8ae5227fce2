"""What every stopping rule must hold, on made-up searches: any losses, failures, and numbers of jobs at once."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retune.search.stopping import WHOLE, Job, Result, bracket, next_job, rungs_of
from retune.study import Stopping

RULES = [
    None,
    Stopping(kind="asha"),
    Stopping(kind="asha", reduction=2, min_share=0.05),
    Stopping(kind="hyperband"),
    Stopping(kind="hyperband", reduction=4, min_share=0.02),
    Stopping(kind="median"),
    Stopping(kind="median", min_share=0.1, interval=0.3, startup_trials=2),
]


@dataclass
class Search:
    """A search whose losses are known: `curves(trial, share)`; None where the trial fails."""

    rule: Stopping | None
    trials: int
    curves: object
    parallel: int = 1
    wanted: int = 2
    jobs: list = field(default_factory=list)

    def results(self, jobs):
        found, reached = [], {}
        for job in jobs:
            for share in (*rungs_of(self.rule, job.trial), WHOLE):
                if reached.get(job.trial, 0.0) < share <= job.share:
                    loss = self.curves(job.trial, share)
                    found.append(Result(job.trial, share if loss is not None else job.share, loss))
                    reached[job.trial] = share if loss is not None else math.inf
        return found

    def run(self):
        settled = 0
        while True:
            known = max(settled, len(self.jobs) + 1 - self.parallel)
            job = next_job(
                self.rule, self.results(self.jobs[:known]), self.jobs[known:], self.trials, self.wanted
            )
            if job is None and known == len(self.jobs):
                return self
            if job is None:
                settled = len(self.jobs)
                continue
            self.jobs.append(job)
            assert len(self.jobs) < 10_000


def search(rule, seed_losses, trials, parallel=1):
    """Losses fall with the share, cross each other, and one in nine trials fails."""

    def curves(trial, share):
        first, last = (
            seed_losses[(2 * trial) % len(seed_losses)],
            seed_losses[(2 * trial + 1) % len(seed_losses)],
        )
        if trial > 1 and trial % 9 == 0 and share > 0.2:
            return None
        return first + (last - first) * share

    return Search(rule, trials, curves, parallel).run()


losses = st.lists(st.floats(0.1, 10, allow_nan=False), min_size=3, max_size=60)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=str)
@given(losses=losses, trials=st.integers(1, 40), parallel=st.integers(1, 5))
def test_the_jobs_of_any_search_are_in_order(rule, losses, trials, parallel):
    done = search(rule, losses, trials, parallel)
    by_trial = {}
    for job in done.jobs:
        by_trial.setdefault(job.trial, []).append(job.share)
    assert sorted(by_trial) == list(range(1, trials + 1))
    assert by_trial[1] == [WHOLE]
    allowed = [*(rule.rungs if rule else ()), WHOLE]
    for trial, shares in by_trial.items():
        assert shares == sorted(set(shares)), "each job of a trial goes further than the one before"
        assert all(share in allowed for share in shares)
        failed = [r.share for r in done.results(done.jobs) if r.trial == trial and r.loss is None]
        assert not failed or shares[-1] <= failed[0], "a failed trial does not go on"
    complete = [r for r in done.results(done.jobs) if r.share == WHOLE and r.loss is not None]
    sound = [trial for trial in by_trial if trial % 9]
    assert len(complete) >= min(done.wanted, len(sound))
    assert search(rule, losses, trials, parallel).jobs == done.jobs


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=str)
@given(losses=losses, short=st.integers(1, 12), more=st.integers(0, 12), parallel=st.integers(1, 4))
def test_a_larger_budget_begins_with_the_same_jobs_until_the_smaller_one_had_no_new_trial(
    rule, losses, short, more, parallel
):
    first, longer = (
        search(rule, losses, short, parallel).jobs,
        search(rule, losses, short + more, parallel).jobs,
    )
    last = max(place for place, job in enumerate(first) if job.trial == short and job not in first[:place])
    opened = next(place for place, job in enumerate(first) if job.trial == short)
    assert longer[: opened + 1] == first[: opened + 1]
    assert last >= opened


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["asha", "hyperband"])
@given(losses=losses, trials=st.integers(1, 40))
def test_who_goes_on_is_among_the_best_at_its_rung_then(kind, losses, trials):
    rule = Stopping(kind=kind, reduction=3)
    done = Search(rule, trials, search(rule, losses, trials).curves, wanted=0).run()
    for place, job in enumerate(done.jobs):
        known = done.results(done.jobs[:place])
        if not (before := [r for r in known if r.trial == job.trial]):
            continue
        own = bracket(rule, job.trial)
        here = [r for r in known if r.share == before[-1].share and bracket(rule, r.trial) == own]
        better = sum(r.loss is not None and (r.loss, r.trial) < (before[-1].loss, job.trial) for r in here)
        assert better < len(here) // 3


@pytest.mark.slow
@given(losses=losses, trials=st.integers(9, 60))
def test_asha_trains_the_best_at_a_rung(losses, trials):
    rule = Stopping(kind="asha")
    done = Search(rule, trials, search(rule, losses, trials).curves, wanted=0).run()
    results = [r for r in done.results(done.jobs) if r.share == rule.rungs[0]]
    ranked = sorted((r.loss, r.trial) for r in results if r.loss is not None)
    best = {trial for _, trial in ranked[: len(results) // 3]}
    gone_on = {job.trial for job in done.jobs if job.share > rule.rungs[0]}
    assert best <= gone_on


def test_median_lets_the_first_ones_go_on_and_stops_what_is_worse():
    rule = Stopping(kind="median", min_share=0.5, startup_trials=3)
    worse = [Result(k, 0.5, float(k)) for k in range(1, 5)]
    ends = [Result(k, WHOLE, float(k)) for k in range(1, 4)]
    assert next_job(rule, [*worse[:3], *ends[:2]], [], 3, 0) == Job(3, WHOLE)
    assert next_job(rule, [*worse, *ends], [], 4, 0) is None
    assert next_job(rule, [*worse[:3], Result(4, 0.5, 2.0), *ends], [], 4, 0) == Job(4, WHOLE)
    assert next_job(rule, [*worse[:3], Result(4, 0.5, None), *ends], [], 4, 9) is None


def test_brackets_of_hyperband_get_about_the_same_training():
    """27 : 9 : 3 reductions, as in table 1 of Li et al. 2018 for R = 9 and eta = 3: 9, 5 and 3 trials a round."""
    rule = Stopping(kind="hyperband")
    round_ = [bracket(rule, trial) for trial in range(2, 19)]
    assert [round_.count(skipped) for skipped in range(3)] == [9, 5, 3]
    assert [bracket(rule, trial) for trial in range(19, 36)] == round_
    assert len(set(round_[:4])) == 3
    assert rungs_of(rule, 1) == rule.rungs
