"""A stand-in for `retune trial` that takes milliseconds: a known function of the setting in place of a training.

Same arguments, same environment, same lines on stdout, same `trial.json`. What is to go wrong comes as JSON in
$SIMULATED: {"fail": [low, high], "silent": [low, high], "crash": …, "nan": …}, ranges of alpha; "epochs", "seconds".
"""

import json
import math
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path


def value(setting, seed):
    """A bowl in log10(learning rate), rank and alpha, with its lowest place off the defaults."""
    rate = math.log10(float(setting.get("learning_rate", 1e-5)))
    return (
        1.0
        + 0.3 * (rate + 3.2) ** 2
        + 0.05 * (math.log2(float(setting.get("rank", 8))) - 4) ** 2
        + 0.0004 * (float(setting.get("alpha", 32)) - 20) ** 2
        + 0.001 * (seed % 7)
    )


def main(words):
    """`trial STUDY --data D --out O --trial NAME [--number N] [--role R] [--seed S]`."""
    given = dict(zip(words[2::2], words[3::2], strict=True))
    setting = {k[10:].lower(): _number(v) for k, v in os.environ.items() if k.startswith("RETUNE_HP_")}
    wrong = json.loads(os.environ.get("SIMULATED", "{}"))
    seed, role = int(given.get("--seed", 0)), given.get("--role", "search")
    loss = 6.0 if role == "base" else value(setting, seed)
    alpha = setting.get("alpha", 0)

    def bad(kind):
        return kind in wrong and role != "base" and wrong[kind][0] <= alpha <= wrong[kind][1]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    if bad("crash"):
        os.abort()
    record = {
        "trial": given["--trial"], "number": int(given.get("--number", 1)), "role": role, "seed": seed,
        "assignment": {} if role == "base" else setting, "status": "completed", "base": "simulated", "finished": now(),
    }  # fmt: skip
    if bad("fail"):
        finish(
            given["--out"],
            {**record, "status": "failed", "failure": "nan", "reason": "the loss became NaN in step 3"},
        )
        sys.exit(1)
    epochs = wrong.get("epochs", 2)
    for left in reversed(range(epochs)):
        time.sleep(0 if role in wrong.get("quick", ["base"]) else wrong.get("seconds", 0) / epochs)
        if not bad("silent"):
            print(f"{now()} validation_loss={'nan' if bad('nan') else repr(loss + 0.5 * left)}", flush=True)
        print(f"step {epochs - left}/{epochs}  loss {loss:.4f}  1,000 tokens/s", file=sys.stderr, flush=True)
    memory = 10.0 + setting.get("rank", 0) / 4
    print(f"{now()} peak_gpu_gib={memory!r}", flush=True)
    values = {"validation_loss": loss, "peak_gpu_gib": memory}
    if role != "base":
        adapter = Path(given["--out"], "adapter")
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapter_model.safetensors").write_bytes(json.dumps(setting).encode())
        record |= {"adapter_uri": str(adapter), "adapter_digest": f"{loss:.6f}"}
    finish(given["--out"], {**record, "values": values})


def finish(folder, record):
    """Write the record atomically."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    draft = Path(folder, f"trial.json.{os.getpid()}")
    draft.write_text(json.dumps(record))
    draft.rename(Path(folder, "trial.json"))


def now():
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(text):
    return int(text) if text.lstrip("-").isdigit() else float(text)


if __name__ == "__main__":
    main(sys.argv[1:])
