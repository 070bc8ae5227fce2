"""The functions of `import retune` refuse what is no study, and take a single table."""

import pytest

import retune


@pytest.mark.parametrize("function", [retune.run, retune.suggest])
@pytest.mark.parametrize("given", [{"name": "a-study"}, "study.yaml", None])
def test_what_is_no_study_is_refused(function, given):
    with pytest.raises(
        retune.InputError, match=r"takes a retune\.Study, but got .* make one with retune\.load"
    ):
        function(given)


def test_one_table_is_a_list_of_one(tmp_path):
    table = tmp_path / "scores.csv"
    table.write_text("model,mmlu,bbh\na,40,30\nb,50,20\n")
    one, listed = retune.select(str(table)), retune.select([str(table)])
    assert one == listed
