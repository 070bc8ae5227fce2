"""`retune judge`: let people compare the answers of two models without knowing whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retune.cli import _options
from retune.cli._mistakes import Group
from retune.cli._say import say, say_data, say_over
from retune.errors import InputError, Interrupted
from retune.events import Event

if TYPE_CHECKING:
    from retune.evaluation.judge.score import Preference


@click.group(
    "judge", cls=Group, elsewhere=dict.fromkeys(("report", "results", "result", "evaluate", "count"), "score")
)
def command() -> None:
    """Let people compare the answers of two models, blind.

    \b
    Examples:
      retune judge prepare --a runs/trial-009/adapter --b base --questions vicuna.jsonl -n 30 --out judge
      (send judge/form.html to the annotators; put the files they return into judge/answers)
      retune judge score judge/answers/*.json
    """


@command.command("prepare", short_help="Answer questions with both models and write the form.")
@click.option("--a", "first", required=True, metavar="MODEL",
              help="[NAME=]URI of an adapter or study folder, model@alias, or `base` for the untuned base.")  # fmt: skip
@click.option("--b", "second", required=True, metavar="MODEL", help="The model to compare with.")
@click.option("--base", metavar="BASE",
              help="Base model: a folder, an s3:// folder or a hub name. Default: what the adapters name.")  # fmt: skip
@click.option("--revision", metavar="SHA", help="Revision of a hub name.")
@_options.dtype()
@click.option("--questions", required=True, metavar="FILE",
              help="JSON lines as Vicuna's, or text with one question per line; a path or URI.")  # fmt: skip
@click.option(
    "-n", "count", type=click.IntRange(min=1), default=30, show_default=True, help="Questions to draw."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which questions are drawn.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=512, show_default=True,
              help="The longest answer, in tokens.")  # fmt: skip
@_options.batch_size()
@click.option("--out", default="judge", show_default=True, metavar="DIR",
              help="Output folder of the form and its key.")  # fmt: skip
@click.option("--prompt", metavar="chat|alpaca|none|FILE",
              help="Prompt of both models. Default: the one each was tuned with; the untuned base gets the other's.")  # fmt: skip
@_options.tracking("MLflow tracking URI, for model@alias.")
@click.option("--json", "as_json", is_flag=True, help="Print the places as JSON.")
def prepare(
    first: str,
    second: str,
    base: str | None,
    revision: str | None,
    dtype: str,
    questions: str,
    count: int,
    seed: int,
    new_tokens: int,
    batch_size: int,
    out: str,
    prompt: str | None,
    uri: str,
    as_json: bool,
) -> None:
    """Answer questions with two models and write a form in which people say which answer is better.

    Writes form.html (send this file alone), key.json and generated.json (keep both: they identify the models).
    Run it again to resume after a stop.

    \b
    Examples:
      retune judge prepare --a artifacts/support-bot --b base --questions vicuna.jsonl
      retune judge prepare --a support-bot@champion --b support-bot@previous --questions vicuna.jsonl
      retune judge prepare --base llama --a tuned=s3://runs/adapter --b base --questions q.txt -n 10 --out judge
    """
    from retune import store
    from retune.evaluation.judge import prepare as judge
    from retune.steps import contestants

    store.require_writable(out, "--out")
    a, b = (contestants.find(text, uri) for text in (first, second))
    prompts, note = contestants.prompts(a, b, prompt)
    if note:
        say(f"note: {note}", fg="yellow", err=True)
    try:
        form = judge.prepare(
            base, a.candidate, b.candidate, questions, count, seed, out, new_tokens, batch_size,
            _quiet if as_json else _progress, prompts, revision, dtype,
        )  # fmt: skip
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped; answers so far are in {out}. Run the same command to resume") from error
    if as_json:
        import json

        say_data(
            json.dumps(
                {"form": form.form_uri, "key": form.key_uri, "asked": form.comparisons, "equal": form.equal}
            )
        )
        return
    if form.equal:
        say(
            f"equal answers to {len(form.equal)} of {count} questions: not in the form, counted as ties ({', '.join(form.equal)})"
        )
    say(f"send   {form.form_uri}   (this file alone; questions: {form.comparisons})")
    say(f"keep   {form.key_uri}   (whose answer is whose)")
    say(f"then   retune judge score {out}/answers/*.json --key {form.key_uri}")


@command.command("score", short_help="Evaluate people's answers.")
@click.argument("files", nargs=-1, required=True, metavar="ANSWERS…")
@click.option("--key", metavar="FILE", help="The form's key. Default: key.json in the answers' folder, or above it.")  # fmt: skip
@click.option("--out", metavar="DIR",
              help="Output folder of preference.md, .json, .png and .svg. Default: the key's folder.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the draws of the interval.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of Markdown.")
def score(files: tuple[str, ...], key: str | None, out: str | None, seed: int, as_json: bool) -> None:
    """Evaluate people's answers: preference per question and overall, its interval, agreement, a figure.

    Duplicate, empty, foreign and damaged files are reported and skipped. An unfinished file counts for the questions it answers.

    \b
    Examples:
      retune judge score judge/answers/*.json
      retune judge score answers/*.json --key judge/key.json --out results --json
    """
    from retune import store
    from retune.evaluation.judge import key as keys
    from retune.evaluation.judge import score as scores
    from retune.report import preference as page

    if folders := [file for file in files if "://" not in file and Path(file).is_dir()]:
        raise InputError(
            [
                f"{folder} is a folder: name the files in it, {folder.rstrip('/')}/*.json"
                for folder in folders
            ],
            "the answers",
        )
    key_path = key or _beside(files[0])
    outcome = scores.score(files, keys.read(key_path), seed)
    if out is None and "://" in key_path:
        raise InputError(f"`--out` names a local folder when the key is not local, but the key is {key_path}")
    written = page.write(outcome, Path(out) if out else Path(store.download(key_path)).parent)
    _notes(outcome)
    if as_json:
        say_data(outcome.to_json().decode().rstrip())
    else:
        say(page.markdown(outcome))
    say("written: " + ", ".join(map(str, written)), err=True)


def _beside(file: str) -> str:
    """Return the key in the folder of an answer file, or in the one above."""
    from retune.evaluation.judge.prepare import KEY

    folder = Path(file).parent
    for path in (folder / KEY, folder.parent / KEY):
        if path.is_file():
            return str(path)
    raise InputError(f"there is no {KEY} in {folder} or above it: give --key")


def _notes(outcome: Preference) -> None:
    """Print to stderr which files were skipped, and which are unfinished."""
    for one in outcome.left_out:
        say(f"left out: {one.file}: {one.reason}", fg="yellow", err=True)
    for person in outcome.annotators:
        if person.missing:
            say(
                f"unfinished: {person.file}: {person.missing} questions are open",
                fg="yellow",
                err=True,
            )


def _progress(event: Event) -> None:
    if event.kind == "answering":
        text = f"{event.done}/{event.total} answers, {event.model}, {event.seconds_left:.0f} s left"
        say_over(text, last=event.done == event.total)


def _quiet(event: Event) -> None:
    """Show nothing."""
