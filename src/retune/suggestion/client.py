"""Calls a suggestion service as Katib does; the local engine uses it to reach the algorithms."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

import grpc

from retune.errors import InputError
from retune.search import Observation
from retune.space import Assignment
from retune.study import Study
from retune.suggestion import messages as katib
from retune.suggestion.experiment import experiment_of_study, search_of
from retune.suggestion.service import UNLIMITED
from retune.suggestion.trials import trial_of

_CALL_SECONDS = 60.0  # as Katib's
_PAUSE_SECONDS = 0.2


class SuggestionClient:
    """A connection to the service at `address` (``host:port``).

    A call is repeated for `patience` seconds while the service is unreachable; that is safe, since the answer depends on
    the request alone.
    """

    def __init__(self, address: str, patience: float = 5.0) -> None:
        self._address, self._patience = address, patience
        backoff = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
        self._channel = grpc.insecure_channel(address, options=[*UNLIMITED, *backoff])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def validate(self, study: Study) -> list[str]:
        """Return the problems that the service finds in a study's search; empty if it can run.

        Raises:
            ConnectionError: if the service stays unreachable.
        """
        request = katib.ValidateAlgorithmSettingsRequest(experiment=experiment_of_study(study))
        try:
            self._call("ValidateAlgorithmSettings", request, katib.ValidateAlgorithmSettingsReply)
        except InputError as error:
            return error.problems
        return []

    def suggest(
        self, study: Study, history: Sequence[Observation], count: int = 1, issued: int | None = None
    ) -> list[Assignment]:
        """Return the next `count` settings of a study, on the grid of its space.

        Args:
            study: its space, objective and algorithm.
            history: all observations, in any order.
            count: number of settings.
            issued: how many settings were requested before; default: the number of observations that are not from an
                earlier study.

        Raises:
            InputError: if the service refuses the search.
            ConnectionError: if the service stays unreachable or fails.
        """
        experiment = experiment_of_study(study)
        search = search_of(experiment)
        before = sum(not entry.warm for entry in history) if issued is None else issued
        request = katib.GetSuggestionsRequest(
            experiment=experiment,
            trials=[trial_of(search, entry) for entry in history],
            current_request_number=count,
            total_request_number=before + count,
        )
        reply = self._call("GetSuggestions", request, katib.GetSuggestionsReply)
        space = study.search.space
        settings = [
            space.snap({pair.name: pair.value for pair in entry.assignments})
            for entry in reply.parameter_assignments
        ]
        if len(settings) != count:
            raise ConnectionError(
                f"the suggestion service at {self._address} must return {count} settings, but returned {len(settings)}"
            )
        return settings

    def _call(self, method: str, request: Any, reply: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{katib.SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        until = time.monotonic() + self._patience
        while True:
            try:
                return call(request, timeout=_CALL_SECONDS)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                    raise InputError(_problems(error.details()), "search") from error
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                    reason = f"{error.code().name}: {error.details()}"
                    raise ConnectionError(f"the suggestion service at {self._address}: {reason}") from error
            time.sleep(_PAUSE_SECONDS)


def _problems(details: str | None) -> list[str]:
    """Return the problems listed in the message of an `InputError`."""
    lines = [line.removeprefix("  - ") for line in (details or "").splitlines() if line.startswith("  - ")]
    return lines or [details or "refused without a reason"]
