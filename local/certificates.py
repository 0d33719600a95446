"""Keys, certificates and kubeconfigs of one control plane, made with openssl.

Elliptic curves, ten years, nobody rotates them: a cluster lives for hours and its folder goes with it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local.programs import run

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
DAYS = ("-days", "3650")


@dataclass(frozen=True)
class Identity:
    """What a certificate says: a file name, who (user), of which groups, and under which names it serves."""

    file: str
    user: str
    group: str = ""
    serves: Sequence[str] = ()
    signed_by: str = "ca"


ADMIN = Identity("admin", "admin", "system:masters")
KUBELET_CLIENT = Identity("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
FRONT_PROXY_CLIENT = Identity("front-proxy-client", "front-proxy-client", signed_by="front-proxy-ca")
CONTROLLER_MANAGER = Identity("controller-manager", "system:kube-controller-manager")
SCHEDULER = Identity("scheduler", "system:kube-scheduler")
PROXY = Identity("proxy", "system:kube-proxy")


def api_server(addresses: Sequence[str]) -> Identity:
    """The certificate that the API server shows its clients."""
    names = (
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    )
    serves = [f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses]
    return Identity("apiserver", "kube-apiserver", serves=serves)


def create_authorities(folder: Path) -> None:
    """Two authorities (clients and servers; the aggregation layer) and the key that signs service account tokens."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("ca", "front-proxy-ca"):
        files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt")
        run("openssl", "req", "-x509", *CURVE, *DAYS, "-subj", f"/CN={name}", *files)
    run("openssl", "genrsa", "-out", folder / "service-accounts.key", "2048")
    run("openssl", "rsa", "-in", folder / "service-accounts.key", "-pubout", "-out", folder / "service-accounts.pub")


def issue(folder: Path, identity: Identity) -> None:
    """Writes `FILE.crt` and `FILE.key` for the identity."""
    files = {ending: folder / f"{identity.file}.{ending}" for ending in ("key", "crt", "csr", "ext")}
    extensions = ["basicConstraints=CA:FALSE", "keyUsage=digitalSignature", "extendedKeyUsage=clientAuth,serverAuth"]
    if identity.serves:
        extensions.append("subjectAltName=" + ",".join(identity.serves))
    files["ext"].write_text("\n".join(extensions) + "\n")
    subject = (f"/O={identity.group}" if identity.group else "") + f"/CN={identity.user}"
    run("openssl", "req", "-new", *CURVE, "-subj", subject, "-keyout", files["key"], "-out", files["csr"])
    authority = ("-CA", folder / f"{identity.signed_by}.crt", "-CAkey", folder / f"{identity.signed_by}.key")
    extras = ("-CAcreateserial", *DAYS, "-extfile", files["ext"])
    run("openssl", "x509", "-req", "-in", files["csr"], *authority, *extras, "-out", files["crt"])
    files["ext"].unlink()
    files["csr"].unlink()


def write_kubeconfig(path: Path, folder: Path, identity: Identity, server: str) -> None:
    """Writes a kubeconfig with everything in it, readable by its owner only."""

    def inline(name: str) -> str:
        return base64.b64encode((folder / name).read_bytes()).decode()

    keys = {
        "client-certificate-data": inline(f"{identity.file}.crt"),
        "client-key-data": inline(f"{identity.file}.key"),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "headrace-local",
        "clusters": [
            {
                "name": "headrace-local",
                "cluster": {"server": server, "certificate-authority-data": inline("ca.crt")},
            }
        ],
        "users": [{"name": identity.user, "user": keys}],
        "contexts": [{"name": "headrace-local", "context": {"cluster": "headrace-local", "user": identity.user}}],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))
