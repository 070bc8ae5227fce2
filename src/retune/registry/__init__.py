"""The registered model in MLflow: registration, the gate, promotion and rollback."""
