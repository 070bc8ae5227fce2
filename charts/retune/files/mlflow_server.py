"""Start MLflow's server. Arguments: those of `mlflow server` besides the address to listen on."""

import os
import secrets
import sys

# In a cluster of IPv6 alone a pod has no address of IPv4. `::` everywhere would not do: with one worker, uvicorn leaves IPv4 out.
host = "::" if ":" in os.environ["POD_IP"] else "0.0.0.0"
# Signs the forms of MLflow's pages. The chart would make another one with each `helm template`, which Argo CD sees as a change.
os.environ["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_hex()
os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", f"--host={host}", *sys.argv[1:]])
