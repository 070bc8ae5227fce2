"""From trials to a promoted adapter: selection, registration, gate, promotion and rollback."""
