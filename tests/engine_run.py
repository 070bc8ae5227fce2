"""A test's view of one run of an engine, the same for every engine."""


class EngineRun:
    """One run of an engine, `engine`, and the `events` that it reported."""

    def go(self):
        self.outcome = self.engine.run()
        return self

    @property
    def issued(self):
        return [event.trial for event in self.events if event.kind == "issued"]
