"""Before the server starts: the account of the Secret in the login's tables, and the file that tells the server where they are.

The tables are in the server's own database. MLflow itself makes the account only once; here a changed password takes effect at
the next start. Argument: the file.
"""

import configparser
import os
import sys

from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

database = os.environ["MLFLOW_BACKEND_STORE_URI"]
name, password = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
store = SqlAlchemyStore()
store.init_db(database)
if store.has_user(name):
    store.update_user(name, password=password, is_admin=True)
else:
    store.create_user(name, password, is_admin=True)

config = configparser.ConfigParser(interpolation=None)
# The server reads this file with configparser's interpolation, so a literal `%` is doubled.
config["mlflow"] = {
    "database_uri": database.replace("%", "%%"),
    "default_permission": "READ",
    "admin_username": name,
    "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
}
with open(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
    config.write(file)
