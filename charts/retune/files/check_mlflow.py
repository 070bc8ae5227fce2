"""`helm test`: is MLflow new enough, does it keep a run, and pass an artifact to the storage and back? Argument: its address."""

import sys

from retune.tracking import server
from retune.tracking.runs import connect, ensure_experiment

if problem := server.problem(sys.argv[1]):
    sys.exit(problem)
client = connect(sys.argv[1])
run = client.create_run(ensure_experiment(client, sys.argv[1], "helm-test")).info.run_id
client.log_metric(run, "hello", 1.0)
client.log_text(run, "hello", "hello.txt")
found = [entry.path for entry in client.list_artifacts(run)]
metrics = client.get_run(run).data.metrics
client.delete_run(run)
if (found, metrics) != (["hello.txt"], {"hello": 1.0}):
    sys.exit(f"wrote a metric and an artifact to {sys.argv[1]}, but read {metrics} and {found}")
print(f"{sys.argv[1]} keeps metrics and artifacts")
