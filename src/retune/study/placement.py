"""On which nodes pods may run: tolerations, affinity and spreading, with the names and the rules of Kubernetes.

Source: k8s.io/kubernetes, pkg/apis/core/validation (ValidateTolerations, validateAffinity,
validateTopologySpreadConstraints).
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from retune.study.kubernetes import Label, LabelKey, LabelValue, label_value
from retune.study.section import Section


class Toleration(Section):
    """A taint that the pods tolerate, as in a pod's spec; without `operator` it is Equal if there is a `value`, else Exists."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _check_operator(self) -> Self:
        if self.operator is None:
            self.operator = "Exists" if self.value is None else "Equal"
        problems = []
        if self.operator == "Exists" and self.value:
            problems.append(
                f"`operator: Exists` takes no `value`, but got {self.value!r}; leave `operator` out, or say Equal"
            )
        if self.operator == "Equal" and self.key is None:
            problems.append("`operator: Equal` needs a `key`, but it is not given")
        return self._checked(problems)


class _Requirement(Section):
    """A label that something must have."""

    key: LabelKey
    operator: str
    values: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        problems, count = [], len(self.values)
        if self.operator in ("In", "NotIn") and not count:
            problems.append(f"`operator: {self.operator}` needs `values`, but there is none for {self.key!r}")
        if self.operator in ("Exists", "DoesNotExist") and count:
            problems.append(f"`operator: {self.operator}` takes no `values`, but got {self.values}")
        if self.operator in ("In", "NotIn"):
            for value in self.values:
                try:
                    label_value(value)
                except ValueError as error:
                    problems.append(f"`values` {error}")
        if self.operator in ("Gt", "Lt") and (count != 1 or not re.fullmatch("-?[0-9]+", self.values[0])):
            problems.append(f"`operator: {self.operator}` takes one whole number, but got {self.values}")
        return self._checked(problems)


class NodeRequirement(_Requirement):
    """A label that a node must have."""

    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]


class LabelRequirement(_Requirement):
    """A label that pods must have."""

    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[LabelValue] = Field(default_factory=list)


class LabelSelector(Section):
    """Pods, by their labels."""

    matchLabels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    matchExpressions: list[LabelRequirement] = Field(default_factory=list)


class NodeTerm(Section):
    """A node that satisfies all expressions."""

    matchExpressions: list[NodeRequirement] = Field(min_length=1)


class NodeTerms(Section):
    """A node that satisfies one of the terms."""

    nodeSelectorTerms: list[NodeTerm] = Field(min_length=1)


class PreferredNodes(Section):
    """Nodes to prefer, by weight."""

    weight: int = Field(ge=1, le=100)
    preference: NodeTerm


class NodeAffinity(Section):
    """Nodes that are required, and nodes that are preferred."""

    requiredDuringSchedulingIgnoredDuringExecution: NodeTerms | None = None
    preferredDuringSchedulingIgnoredDuringExecution: list[PreferredNodes] = Field(default_factory=list)


class PodTerm(Section):
    """Nodes, racks or zones (`topologyKey`) on which the selected pods run."""

    topologyKey: LabelKey
    labelSelector: LabelSelector
    namespaces: list[Label] = Field(default_factory=list)


class PreferredPods(Section):
    """A preferred term, by weight."""

    weight: int = Field(ge=1, le=100)
    podAffinityTerm: PodTerm


class PodAffinity(Section):
    """Pods to run near to, or, under `podAntiAffinity`, far from."""

    requiredDuringSchedulingIgnoredDuringExecution: list[PodTerm] = Field(default_factory=list)
    preferredDuringSchedulingIgnoredDuringExecution: list[PreferredPods] = Field(default_factory=list)


class Affinity(Section):
    """`affinity` of a pod's spec."""

    nodeAffinity: NodeAffinity | None = None
    podAffinity: PodAffinity | None = None
    podAntiAffinity: PodAffinity | None = None


class Spread(Section):
    """One of the `topologySpreadConstraints` of a pod's spec; without a selector it counts the trials of retune."""

    maxSkew: int = Field(1, ge=1, lt=2**31)
    topologyKey: LabelKey
    whenUnsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "ScheduleAnyway"
    labelSelector: LabelSelector | None = None
    minDomains: int | None = Field(None, ge=1, lt=2**31)

    @model_validator(mode="after")
    def _check_domains(self) -> Self:
        problems = []
        if self.minDomains is not None and self.whenUnsatisfiable != "DoNotSchedule":
            problems.append(
                f"`minDomains` needs `whenUnsatisfiable: DoNotSchedule`, but got {self.whenUnsatisfiable}"
            )
        return self._checked(problems)
