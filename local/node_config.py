"""The configuration of one node's daemons (containerd, kubelet, kube-proxy), as pure functions.

The settings that differ from a usual node do so because the node is a set of namespaces on a shared machine; each
says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from local.images import PAUSE
from local.layout import DNS_SERVICE, PODS, Node

GRACE_SECONDS = 8  # silence after which a node is NotReady
SYNC = "5s"  # how often a kubelet looks at each of its pods
POD_MEMORY_MI = 6144  # what the pods of one node may request together


def containerd(folder: Path) -> str:
    """containerd's own folders and socket, runc without systemd, and nothing that this root may not do."""
    return f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{socket(folder)}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Negative OOM scores need CAP_SYS_RESOURCE, which a container's root often lacks.
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"""


def socket(folder: Path) -> Path:
    """Where the node's containerd answers. On the machine's disk, so that it is reached from outside the node."""
    return folder / "containerd.sock"


def cni(folder: Path, node: Node) -> dict[str, Any]:
    """A bridge for the node's pods. No masquerading: a pod keeps its own address on its way to other nodes."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(folder / "cni-data"),
            "ranges": [[{"subnet": node.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def kubelet(folder: Path, pki: Path, node: Node, machine_memory_mi: int) -> dict[str, Any]:
    """The kubelet's configuration file."""
    full = "1%"  # the disk is the machine's: only when it is really full must pods go
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "oomScoreAdj": 0,
        "containerRuntimeEndpoint": f"unix://{socket(folder)}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"{node.name}.crt"),
        "tlsPrivateKeyFile": str(pki / f"{node.name}.key"),
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        # Else the machine's own resolver gets into pods that ask for the node's.
        "resolvConf": str(folder / "resolv.conf"),
        # The lease is renewed at a quarter of this: often enough for the short grace period.
        "nodeLeaseDurationSeconds": GRACE_SECONDS,
        "nodeStatusUpdateFrequency": "4s",
        # A changed ConfigMap or Secret is in its pods within seconds, not a minute or more.
        "syncFrequency": SYNC,
        "serializeImagePulls": False,
        "volumePluginDir": str(folder / "volume-plugins"),
        # No registry gives back an image that was collected as unused.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": full,
            "imagefs.available": full,
            "nodefs.inodesFree": full,
            "imagefs.inodesFree": full,
        },
        # The kubelet sees the whole machine: what other nodes may use is reserved away.
        "systemReserved": {"memory": f"{max(0, machine_memory_mi - POD_MEMORY_MI - 100)}Mi"},
        "maxPods": 64,
    }


def kube_proxy(kubeconfig: Path, hostname: str) -> dict[str, Any]:
    """kube-proxy in iptables mode; connection tracking limits cannot be set from a network namespace."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "hostnameOverride": hostname,
        "clusterCIDR": PODS,
        "detectLocalMode": "ClusterCIDR",
        "oomScoreAdj": 0,
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "0.0.0.0:10256",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def kubelet_command(program: Path, folder: Path, node: Node) -> list[str]:
    return [
        str(program),
        "kubelet",
        f"--config={folder / 'kubelet.yaml'}",
        f"--kubeconfig={folder / 'kubelet.kubeconfig'}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]
