"""The part of the data that the trials of `search.proxy` train on."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from retune.data.example import Example
from retune.data.subset import choose


def made(counts):
    return [
        Example(instruction=f"{source} {row}", input="", output="x", source=source, row=row)
        for source, count in counts.items()
        for row in range(count)
    ]


@given(
    counts=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 60), min_size=1),
    share=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_source_gives_its_share(counts, share, seed):
    examples = made(counts)
    chosen, subset = choose(examples, share, seed)
    assert len(chosen) == subset.records == max(1, round(share * len(examples)))
    assert subset.of == len(examples)
    for source, count in counts.items():
        took = sum(example.source == source for example in chosen)
        assert took == subset.sources[source]
        assert abs(took - subset.records * count / len(examples)) < 1
    places = [examples.index(example) for example in chosen]
    assert places == sorted(set(places))
    assert choose(examples, share, seed) == (chosen, subset)


def test_another_seed_or_other_records_give_another_part():
    examples = made({"a": 50, "b": 30})
    digests = {choose(examples, 0.2, seed)[1].digest for seed in range(5)}
    assert len(digests) == 5
    changed = [examples[0]._replace(output="y"), *examples[1:]]
    assert choose(examples, 0.99, 0)[1].digest != choose(changed, 0.99, 0)[1].digest


def test_another_process_draws_the_same_part():
    code = (
        "from tests.data.test_subset import made; from retune.data.subset import choose; "
        "print(choose(made({'a': 50, 'b': 30}), 0.2, 3)[1].digest)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == choose(made({"a": 50, "b": 30}), 0.2, 3)[1].digest
