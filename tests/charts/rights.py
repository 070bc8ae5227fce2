"""RBAC: what the objects of a release allow an account to do, and a simulated API server that enforces it."""

from tests.katib_simulator.objects import Refused

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def grants(documents, account, namespace="team-a"):
    """What an account of a namespace may do, as {(namespace, or * for all): {(group, resource, name or *, verb)}}."""
    roles = {
        (d["kind"], d["metadata"].get("namespace", namespace), d["metadata"]["name"]): d for d in documents
    }
    found = {}
    for binding in documents:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if (account, namespace) not in {(s["name"], s["namespace"]) for s in binding["subjects"]}:
            continue
        place = binding["metadata"].get("namespace", namespace)
        ref = binding["roleRef"]["kind"]
        role = roles[ref, place if ref == "Role" else namespace, binding["roleRef"]["name"]]
        key = "*" if binding["kind"] == "ClusterRoleBinding" else place
        for rule in role["rules"]:
            found.setdefault(key, set()).update(
                (group, resource, name, verb)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for name in rule.get("resourceNames", ["*"])
                for verb in rule["verbs"]
            )
    return found


def hold(api, granted):
    """Make the simulator's API server refuse what is not granted; return a list that collects the requests."""
    inner, asked = api._carry_out, []

    def carry_out(method, match, query, body):
        group = (match["group"] or "").rpartition("/")[0]
        resource = match["plural"] + (match["status"] or "")
        verb = _VERBS.get(method) or ("get" if match["name"] else "watch" if "watch" in query else "list")
        asked.append((match["namespace"] or "*", group, resource, verb))
        for place in (match["namespace"], "*"):
            for name in (match["name"], "*"):
                if (group, resource, name, verb) in granted.get(place, ()):
                    return inner(method, match, query, body)
        raise Refused(403, "Forbidden", f"cannot {verb} {resource} {match['name']} in {match['namespace']}")

    api._carry_out = carry_out
    return asked
