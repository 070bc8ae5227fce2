"""`retune export`: a tuned adapter as files for others."""

from __future__ import annotations

from pathlib import Path

import click

from retune.cli import _options
from retune.cli._say import say


@click.command("export")
@click.argument("what", metavar="STUDY_FOLDER|MODEL@ALIAS")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write.  [default: ./<name>]")
@_options.base()
@click.option("--trial", metavar="NAME", help="Another trial of the study instead of the chosen one.")
@click.option(
    "--merge", is_flag=True, help="Merge the adapter into its base: safetensors, tokenizer, chat template."
)
@click.option("--gguf", metavar="TYPE", help="Also as GGUF (f16, q8_0, …), by llama.cpp's converter; merges.")
@click.option("--oci", is_flag=True, help="Also as an OCI image layout, <out>-oci, for skopeo to push.")
@click.option(
    "--push",
    "repo",
    metavar="OWNER/NAME",
    help="Also push to a hub: a private repository, token in HF_TOKEN.",
)
@click.option("--public", is_flag=True, help="With --push: everyone may see the repository.")
@click.option("--dry-run", is_flag=True, help="With --push: export, and only say what would be pushed.")
@click.option(
    "--optuna", "storage", metavar="URL",
    help="Write the study's trials into an Optuna storage (sqlite:///study.db) instead of an adapter.",
)  # fmt: skip
@click.option("--licence", metavar="SPDX", help="For the model card, e.g. apache-2.0.")
@_options.tracking("MLflow tracking URI, for MODEL@ALIAS.")
def command(
    what: str,
    out: Path | None,
    base: str | None,
    trial: str | None,
    merge: bool,
    gguf: str | None,
    oci: bool,
    repo: str | None,
    public: bool,
    dry_run: bool,
    storage: str | None,
    licence: str | None,
    uri: str,
) -> None:
    """Write a tuned adapter with a model card: base, data, setting, scores, gate and licence.

    The adapter is PEFT's own folder, which vLLM serves beside its base (`--enable-lora --lora-modules name=<out>`).
    --merge writes a whole model instead. An OCI layout is pushed by `skopeo copy oci:<out>-oci:latest docker://…` and
    pulled by KServe (`storageUri: oci://…`). --push makes a repository on a Hugging Face hub (HF_ENDPOINT names
    another one) and uploads the folder as one commit.

    \b
    Examples:
      retune export artifacts/support-bot --out support-bot-lora --licence apache-2.0
      retune export support-bot@champion --tracking https://mlflow.example --merge
      retune export artifacts/support-bot --gguf q8_0
      retune export support-bot@champion --push my-team/support-bot --dry-run
      retune export artifacts/support-bot --optuna sqlite:///study.db && optuna-dashboard sqlite:///study.db
    """
    from retune.steps import export, push, tuned
    from retune.steps.oci import to_oci

    if storage:
        if out or trial or merge or gguf or oci or repo:
            raise click.UsageError("--optuna writes trials and no adapter: leave the other options out")
        from retune.steps import optuna_storage

        name, added, total = optuna_storage.export(what, storage)
        say(f"optuna study {name} in {storage}: {added} trials added, {total} in all")
        return
    if (public or dry_run) and not repo:
        raise click.UsageError("--public and --dry-run belong to --push OWNER/NAME")
    where = push.target(repo, public) if repo else None
    if where and not dry_run:
        push.check(where)
    if gguf:
        export.converter()  # before the model is written
    adapter = tuned.find(what, trial, uri, base)
    target = export.write(adapter, out or Path(adapter.name), licence, merge or gguf is not None)
    say(f"{'model' if merge or gguf else 'adapter'} {target}")
    if gguf:
        say(f"gguf {export.to_gguf(target, gguf)}")
    if oci:
        layout = target.with_name(f"{target.name}-oci")
        say(f"oci {layout} {to_oci(target, layout, adapter.name)}")
    if where and dry_run:
        listed = push.files(target)
        for name, size in listed.items():
            say(f"  {name}  {size:,} bytes")
        seen = "public" if public else "private"
        say(f"would push {len(listed)} files, {sum(listed.values()):,} bytes, to {where.url} ({seen})")
    elif where:
        say(f"pushed {push.push(target, where, f'{adapter.name}, tuned by retune')}")
