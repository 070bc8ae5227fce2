"""Runs jobs of a GitHub workflow here: their `run` steps, and those of a composite action under `uses: ./`."""

import os
import re
import subprocess
from pathlib import Path

import yaml


def evaluate(text, values):
    """Return a text with its ``${{ … }}`` replaced; `values` holds what they name, e.g. ``vars.X``; unknown is empty."""
    whole = re.fullmatch(r"\s*\$\{\{(.*?)\}\}\s*", str(text))
    if whole:
        return _expression(whole[1], values)
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(_expression(found[1], values)), str(text))


def _expression(text, values):
    def name(found):
        return f"value({found[1]!r})"

    code = re.sub(r"\b((?:inputs|env|vars|secrets|github|runner|steps)(?:\.[\w-]+)+)", name, text.strip())
    code = code.replace("||", " or ").replace("&&", " and ").replace("!cancelled()", "True")
    functions = {"value": lambda key: values.get(key, ""), "format": lambda form, *words: form.format(*words)}
    return eval(code, {"__builtins__": {}}, functions)


class Actions:
    """One run of a workflow in a clone.

    Args:
        workflow, root: its content, and the folder of the clone. values: what expressions name. env: of every step.
    """

    def __init__(self, workflow, root, values, env):
        self.workflow, self.root, self.env = workflow, Path(root), env
        self.values = {"runner.temp": str(root), "github.action_path": str(root), **values}
        self.said = []

    def job(self, name):
        """Run a job if its condition holds; return the outputs of its last step."""
        job, outputs = self.workflow["jobs"][name], {}
        if "if" in job and not self._holds(job["if"]):
            return None
        values = dict(self.values)
        values |= {f"env.{key}": evaluate(text, values) for key, text in self.workflow.get("env", {}).items()}
        for step in job["steps"]:
            if step.get("uses") == "./":
                outputs = self._action(step.get("with", {}), values)
            elif "run" in step:
                outputs = self._step(step, values)
        return outputs

    def _action(self, given, values):
        action = yaml.safe_load((self.root / "action.yml").read_text())
        assert set(given) <= set(action["inputs"]), "an input that the action does not have"
        inputs = {}
        for key, declared in action["inputs"].items():
            inputs[f"inputs.{key}"] = evaluate(
                given[key] if key in given else declared.get("default", ""), values
            )
        values, outputs = values | inputs, {}
        for step in action["runs"]["steps"]:
            if "if" not in step or self._holds(step["if"], values):
                outputs = self._step(step, values)
        declared = {key: evaluate(output["value"], {f"steps.retune.outputs.{k}": v for k, v in outputs.items()})
                    for key, output in action["outputs"].items()}  # fmt: skip
        return declared

    def _step(self, step, values):
        assert "${{" not in step["run"], "an expression in a script can be injected into"
        file = self.root / ".outputs"
        file.write_text("")
        env = {key: str(evaluate(text, values)) for key, text in step.get("env", {}).items()}
        env = {**os.environ, **self.env, **env, "GITHUB_OUTPUT": str(file)}
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(words, cwd=self.root, env=env, capture_output=True, text=True, check=False)
        self.said.append(done.stdout)
        found = dict(line.split("=", 1) for line in file.read_text().splitlines())
        file.unlink()
        assert done.returncode == 0, done.stderr
        return found

    def _holds(self, condition, values=None):
        return bool(
            _expression(re.sub(r"^\$\{\{|\}\}$", "", condition), self.values if values is None else values)
        )
