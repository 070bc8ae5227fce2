"""`retune export`: a tuned adapter as files for others."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export")
@click.argument("what", metavar="STUDY_FOLDER|MODEL@ALIAS")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write.  [default: ./<name>]")
@click.option("--trial", metavar="NAME", help="Another trial of the study than the chosen one.")
@click.option(
    "--merge", is_flag=True, help="Merge the adapter into its base: safetensors, tokenizer, chat template."
)
@click.option("--gguf", metavar="TYPE", help="Also as GGUF (f16, q8_0, …), by llama.cpp's converter; merges.")
@click.option("--oci", is_flag=True, help="Also as an OCI image layout, <out>-oci, to push by skopeo.")
@click.option("--licence", metavar="SPDX", help="For the model card, e.g. apache-2.0.")
@click.option(
    "--tracking",
    "uri",
    default="sqlite:///mlflow.db",
    show_default=True,
    help="MLflow tracking URI, for MODEL@ALIAS.",
)
def command(
    what: str,
    out: Path | None,
    trial: str | None,
    merge: bool,
    gguf: str | None,
    oci: bool,
    licence: str | None,
    uri: str,
) -> None:
    """Write a tuned adapter with a model card: base, data, setting, scores, gate and licence.

    The adapter is PEFT's own folder, which vLLM serves beside its base (`--enable-lora --lora-modules name=<out>`).
    With --merge it is a whole model. An OCI layout is pushed by `skopeo copy oci:<out>-oci:latest docker://…` and
    pulled by KServe (`storageUri: oci://…`). A hub takes the folder by `hf upload`.

    \b
    Examples:
      retune export artifacts/support-bot --out support-bot-lora --licence apache-2.0
      retune export support-bot@champion --tracking https://mlflow.example --merge
      retune export artifacts/support-bot --gguf q8_0
    """
    from retune.steps import export
    from retune.steps.oci import to_oci

    if "@" in what and "://" not in what and not Path(what).exists():
        model, _, alias = what.partition("@")
        if trial:
            raise click.UsageError("--trial is for the folder of a study")
        found = export.from_registry(model, alias, uri)
    else:
        found = export.from_run(what, trial)
    target = export.write(found, out or Path(found.name), licence, merge or gguf is not None)
    click.echo(f"{'model' if merge or gguf else 'adapter'} {target}")
    if gguf:
        click.echo(f"gguf {export.to_gguf(target, gguf)}")
    if oci:
        layout = target.with_name(f"{target.name}-oci")
        click.echo(f"oci {layout} {to_oci(target, layout, found.name)}")
