"""NetworkPolicies: which connections they let through, by the rules of networking.k8s.io/v1."""

from ipaddress import ip_address, ip_network
from typing import NamedTuple


class Pod(NamedTuple):
    """A pod as policies see it. Outside the cluster: only an address."""

    labels: dict
    namespace: str = "team-a"
    address: str | None = None


def outside(address):
    return Pod({}, "", address)


def connects(policies, source, target, port, protocol="TCP", home="team-a"):
    """Whether `source` may open a connection to `target`; the policies lie in the namespace `home`."""
    return all(
        _through(policies, direction, pod, peer, port, protocol, home)
        for direction, pod, peer in (("egress", source, target), ("ingress", target, source))
    )


def _through(policies, direction, pod, peer, port, protocol, home):
    mine = [
        policy["spec"]
        for policy in policies
        if pod.namespace == home
        and direction.capitalize() in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], pod.labels)
    ]
    if not mine:
        return True
    key = "to" if direction == "egress" else "from"
    return any(
        any(_is(entry, peer, home) for entry in rule.get(key, [{"namespaceSelector": {}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}]))
        and any(
            entry["port"] == port and entry.get("protocol", "TCP") == protocol for entry in rule.get("ports", [{"port": port, "protocol": protocol}])
        )
        for spec in mine
        for rule in spec.get(direction, [])
    )  # fmt: skip


def _is(entry, peer, home):
    if "ipBlock" in entry:
        block = entry["ipBlock"]
        inside = peer.address and ip_address(peer.address) in ip_network(block["cidr"])
        return bool(inside) and not any(
            ip_address(peer.address) in ip_network(b) for b in block.get("except", [])
        )
    if peer.address:
        return False
    if "namespaceSelector" in entry:
        there = _selects(entry["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace})
    else:
        there = peer.namespace == home
    return there and _selects(entry.get("podSelector", {}), peer.labels)


def _selects(selector, labels):
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for rule in selector.get("matchExpressions", []):
        value = labels.get(rule["key"])
        held = {
            "Exists": value is not None,
            "DoesNotExist": value is None,
            "In": value in rule.get("values", []),
            "NotIn": value not in rule.get("values", []),
        }
        if not held[rule["operator"]]:
            return False
    return True
