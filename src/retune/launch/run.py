"""`python -m retune.launch.run NAME ARGUMENTS.json ROOT`: run a compiled pipeline here, in this process's session."""

import json
import sys
from pathlib import Path

from retune.launch.compiled import run_here
from retune.processes import die_with_run

if __name__ == "__main__":
    die_with_run()
    name, arguments, root = sys.argv[1:]
    run_here(name, json.loads(Path(arguments).read_text()), Path(root))
