"""A user for each workload, whose password is in a Secret and in no manifest.

The ACL file is made when the pod starts: a template from the contract, in which the init container puts the
digest of each password. The file lies in memory and goes with the pod.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from deploy._names import PASSWORD_FOLDER, PASSWORDS, Names
from deploy._probes import probes
from deploy._valkey import CONTAINER_SECURITY, arguments, image, server_arguments
from deploy._yaml import Manifest
from inference_cache.acl import EXPORTER, GATE, OPERATOR, render_acl
from inference_cache.contract import Contract

__all__ = [
    "ACL_FILE",
    "_TEMPLATE_FOLDER",
    "acl_template",
    "acl_users",
    "patch",
    "render_script",
    "template_config",
]

_FOLDER = "/etc/valkey"
ACL_FILE = f"{_FOLDER}/users.acl"
_TEMPLATE_FOLDER = "/etc/valkey-template"


def acl_users(contract: Contract) -> tuple[str, ...]:
    """Who has a password: a key of the Secret each."""
    return (*contract.workloads, EXPORTER, OPERATOR, GATE)


def acl_template(contract: Contract) -> str:
    """The ACL file with ``@SHA256_<user>@`` where the digest of that user's password goes.

    Nobody else gets in: the default user is off.
    """
    users = acl_users(contract)
    # Words that stand for passwords until their digests are replaced.
    text = render_acl(contract, passwords={user: f"password of {user}" for user in users}, default_user="off")
    for user in users:
        text = text.replace(sha256(f"password of {user}".encode()).hexdigest(), f"@SHA256_{user}@")
    return text


def render_script(users: tuple[str, ...], *, template: str, passwords: str, target: str) -> str:
    """A shell script that writes ``target`` from the template and a folder with a file for each password."""
    return (
        "set -eu\n"
        "umask 077\n"
        f'acl="$(cat {template})"\n'
        f"for user in {' '.join(users)}; do\n"
        f'  [ -s "{passwords}/$user" ] || {{ echo "no password for $user: the Secret {PASSWORDS} needs a key '
        'of that name"; exit 1; }\n'
        # The inner substitution drops the newline that a file of a password may end in, as clients do.
        f'  digest="$(printf \'%s\' "$(cat "{passwords}/$user")" | sha256sum | cut -d \' \' -f 1)"\n'
        '  acl="$(printf \'%s\\n\' "$acl" | sed "s/@SHA256_$user@/$digest/")"\n'
        "done\n"
        f"printf '%s\\n' \"$acl\" > {target}\n"
    )


def template_config(contract: Contract, names: Names) -> Manifest:
    """The ConfigMap with the template."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(f"{names.server}-acl-template", "cache", of=names.server),
        "data": {"users.acl": acl_template(contract)},
    }


def patch(contract: Contract, names: Names) -> Manifest:
    """What the StatefulSet gets on top: the file, made before the server starts, and probes that log in."""
    settings = {**arguments(contract, names.port), "aclfile": ACL_FILE}
    probe_login = {"name": "VALKEYCLI_AUTH", "valueFrom": _password(EXPORTER)}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": names.server, "namespace": names.namespace},
        "spec": {
            "template": {
                "spec": {
                    "initContainers": [
                        {
                            "name": "acl",
                            "image": image(contract),
                            "command": [
                                "sh",
                                "-c",
                                render_script(
                                    acl_users(contract),
                                    template=f"{_TEMPLATE_FOLDER}/users.acl",
                                    passwords=PASSWORD_FOLDER,
                                    target=ACL_FILE,
                                ),
                            ],
                            "resources": {"requests": {"memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                            "volumeMounts": [
                                {"name": "acl", "mountPath": _FOLDER},
                                {"name": "acl-template", "mountPath": _TEMPLATE_FOLDER, "readOnly": True},
                                {"name": "passwords", "mountPath": PASSWORD_FOLDER, "readOnly": True},
                            ],
                            "securityContext": CONTAINER_SECURITY,
                        }
                    ],
                    "containers": [
                        {
                            "name": "valkey",
                            "args": server_arguments(settings),
                            # The older name too, for images whose valkey-cli does not know the newer one.
                            "env": [probe_login, {**probe_login, "name": "REDISCLI_AUTH"}],
                            "volumeMounts": [{"name": "acl", "mountPath": _FOLDER, "readOnly": True}],
                            **probes(contract, names.port, user=EXPORTER),
                        }
                    ],
                    "volumes": [
                        {"name": "acl", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                        {"name": "acl-template", "configMap": {"name": f"{names.server}-acl-template"}},
                        {"name": "passwords", "secret": {"secretName": PASSWORDS, "defaultMode": 0o440}},
                    ],
                }
            }
        },
    }


def _password(user: str) -> dict[str, Any]:
    return {"secretKeyRef": {"name": PASSWORDS, "key": user}}
