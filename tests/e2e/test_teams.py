"""Two teams, two namespaces, two releases: the second registers nothing, and its study has the name of the first's."""

import pytest

from tests.e2e.objects import start, values

pytestmark = pytest.mark.cluster


def test_equally_named_studies_of_two_teams_do_not_disturb_each_other(team, namespace, images):
    other = namespace("b")
    other.store()
    more = ["--set", "katib.register.enabled=false"]
    other.helm(
        "install",
        "retune",
        "charts/retune",
        "--wait",
        "--timeout",
        "20m",
        *values(other.namespace, *images),
        *more,
    )
    jobs = [
        (place, start(place, images, "twins", "search.algorithm=nomad", "search.trials=3"))
        for place in (team, other)
    ]
    for place, job in jobs:
        outcome = place.outcome(job)
        assert (outcome["trials"], outcome["failed"]) == (3, 0)
        (experiment,) = place.get("experiments", selector="retune.dev/study=twins")
        assert experiment["status"]["trialsSucceeded"] == 3
    assert "test-katib" not in other.helm("test", "retune", "--logs")
    # Now, since Katib lets no Experiment go whose algorithm is no longer registered.
    other.kubectl("delete", "experiments", "--all", "--timeout", "5m")
    other.helm("uninstall", "retune", "--wait")  # not refused: the algorithms are the first team's
    assert [e["metadata"]["name"] for e in team.get("experiments", selector="retune.dev/study=twins")]
