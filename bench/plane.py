"""A whole control plane on loopback with kwok in place of kubelets: pods are scheduled and become ready, nothing runs.

etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok are the real programs, children of this process.
Every write of the operator and of kubelets is in the API server's audit log, by who made it. Called by `scale`.
"""

import json
import shutil
import ssl
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import urllib3
import yaml
from kubernetes.aio.config.kube_config import KubeConfigLoader  # noqa: F401 - proves at start that the client is there

from headrace_operator.api.crd import crd
from headrace_operator.permissions import RULES
from local import api_server, certificates, control_plane, packages, toolchain
from local.certificates import Identity
from local.control_plane import ControlPlane
from local.programs import wait_until
