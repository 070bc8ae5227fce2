"""`retune katib`: registration of retune's algorithms in Katib's configuration."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from retune.cli._mistakes import Group
from retune.cli._say import say

if TYPE_CHECKING:
    from retune.engines.katib.api import Api, Object

_ATTEMPTS = 10  # of a change while others change the ConfigMap
# Seconds without the Kubernetes API: a Job of the chart waits for it, a person at a terminal does not
_PATIENCE_IN_A_POD, _PATIENCE = 120, 5


@click.group("katib", cls=Group)
def command() -> None:
    """Register retune's search algorithms with Katib, or remove them.

    \b
    Examples:
      retune katib register --image registry.example/retune-suggestion:1.0 --dry-run
      retune katib unregister
    """


@command.command()
@click.option(
    "--image", required=True, help="Suggestion image, under the name that the cluster's nodes pull."
)
@click.option("--namespace", default="kubeflow", show_default=True, help="Namespace of Katib.")
@click.option(
    "--service-account",
    metavar="NAME",
    help="Service account of the suggestion pods, e.g. for pull secrets; must exist in each namespace with Experiments.",
)
@click.option("--except", "left_out", multiple=True, metavar="NAME",
              help="Skip an algorithm whose name the cluster already uses; may be repeated.")  # fmt: skip
@click.option("--user", type=click.IntRange(1, 2**31 - 1), default=10001, show_default=True,
              help="User and group id of the suggestion pods.")  # fmt: skip
@click.option("--any-user", is_flag=True,
              help="Let the cluster choose the pods' user id (OpenShift) instead of `--user`.")  # fmt: skip
@click.option(
    "--metrics-port", type=click.IntRange(1, 65535), help="Port for Prometheus metrics; none by default."
)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
def register(
    image: str,
    namespace: str,
    service_account: str | None,
    left_out: tuple[str, ...],
    user: int,
    any_user: bool,
    metrics_port: int | None,
    dry_run: bool,
) -> None:
    """Add retune's algorithms to the ConfigMap katib-config; running it again changes nothing.

    Katib reads the ConfigMap on every use, so nothing is restarted. Running Experiments keep their image.

    \b
    Examples:
      retune katib register --image registry.example/retune-suggestion:1.0
      retune katib register --image registry.example/retune-suggestion:1.1 --dry-run
    """
    from retune.engines.katib import OURS, registration
    from retune.errors import InputError

    if unknown := [name for name in left_out if name not in OURS]:
        raise InputError(f"--except takes names of retune's algorithms, {list(OURS)}, but got {unknown}")
    entries = registration.entries(image, service_account, None if any_user else user, metrics_port)
    wanted = [entry for entry in entries if entry["algorithmName"] not in left_out]
    _change(_api(namespace), lambda text: registration.registered(text, wanted), dry_run)


@command.command()
@click.option("--namespace", default="kubeflow", show_default=True, help="Namespace of Katib.")
@click.option("--dry-run", is_flag=True, help="Only show what would change, or what is in the way.")
@click.option(
    "--delete-finished",
    is_flag=True,
    help="First delete the finished Experiments that use them, in all namespaces, and wait until they are gone.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Remove them even while Experiments use them, which Katib then cannot delete.",
)
def unregister(namespace: str, dry_run: bool, delete_finished: bool, force: bool) -> None:
    """Remove retune's algorithms from the ConfigMap katib-config; everything else in it stays.

    Refused while an Experiment uses them, a finished one too: Katib cannot delete an Experiment whose algorithm it does not know.

    \b
    Examples:
      retune katib unregister
      retune katib unregister --delete-finished
      retune katib unregister --namespace katib --dry-run
    """
    from retune.engines.katib import registration, removal

    api = _api(namespace)
    text = _text(api.config_map(registration.CONFIG_MAP))
    if text is None:
        say(f"nothing to change: {namespace} has no {registration.CONFIG_MAP}")
        return
    names = registration.registered_names(text)
    if names and not force:
        removal.clear(api, names, delete_finished and not dry_run, say)
    _change(api, registration.unregistered, dry_run)


def _api(namespace: str) -> Api:
    from retune import outages
    from retune.engines.katib.api import Api

    return Api(namespace, patience=_PATIENCE_IN_A_POD if outages.in_pod() else _PATIENCE)


def _text(config_map: Object | None) -> str | None:
    """Return the configuration in Katib's ConfigMap, None if there is none."""
    from retune.engines.katib.registration import KEY

    return ((config_map or {}).get("data") or {}).get(KEY)


def _change(api: Api, edit: Callable[[str], str], dry_run: bool) -> None:
    """Read Katib's configuration, edit it and write it back; repeat if it was changed by others meanwhile."""
    from retune.engines.katib.api import Conflict
    from retune.engines.katib.registration import CONFIG_MAP, KEY
    from retune.errors import InputError, RetuneError

    for attempt in range(_ATTEMPTS):
        current = api.config_map(CONFIG_MAP)
        before = _text(current)
        if current is None or before is None:
            raise InputError(
                f"Katib's ConfigMap {CONFIG_MAP} with the key {KEY} must be in the namespace of `--namespace`, "
                f"but it is not in {api.namespace!r}",
                "retune katib",
            )
        after = edit(before)
        if after == before:
            say(f"nothing to change in {api.namespace}/{CONFIG_MAP}")
            return
        shown = difflib.unified_diff(
            before.splitlines(),
            after.splitlines(),
            f"{CONFIG_MAP} before",
            f"{CONFIG_MAP} after",
            lineterm="",
        )
        say("\n".join(shown))
        if dry_run:
            return
        current["data"][KEY] = after
        try:
            api.replace_config_map(current)
        except Conflict:
            time.sleep(0.1 * attempt)
            continue
        say(f"changed {api.namespace}/{CONFIG_MAP}")
        return
    raise RetuneError(f"{CONFIG_MAP} was changed by others during each of {_ATTEMPTS} attempts; run again")
