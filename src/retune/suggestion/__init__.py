"""The suggestion service: Katib's gRPC contract around the pure functions of `retune.search`."""
