{{- /* Made by `make generate` from headrace_operator/permissions.py; never edited. */ -}}
{{- define "headrace.rules" -}}
# what is looked after
- apiGroups: ["headrace.dev"]
  resources: ["inferencedeployments"]
  verbs: ["get", "list", "watch"]
# its status, and nothing else of it
- apiGroups: ["headrace.dev"]
  resources: ["inferencedeployments/status"]
  verbs: ["patch"]
# for owner references that block deletion, where OwnerReferencesPermissionEnforcement is on
- apiGroups: ["headrace.dev"]
  resources: ["inferencedeployments/finalizers"]
  verbs: ["update"]
# roles that somebody else scales
- apiGroups: ["headrace.dev"]
  resources: ["inferenceroles"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# how many engines they have
- apiGroups: ["headrace.dev"]
  resources: ["inferenceroles/status"]
  verbs: ["patch"]
# heads and engines; a gateway may get, list and watch pods, and who grants that must hold it
- apiGroups: [""]
  resources: ["pods"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# contracts, gateways' identities, addresses
- apiGroups: [""]
  resources: ["configmaps", "serviceaccounts", "services"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# gateways
- apiGroups: ["apps"]
  resources: ["deployments"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# the history of revisions
- apiGroups: ["apps"]
  resources: ["controllerrevisions"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# how many engines and gateways may be evicted at a time
- apiGroups: ["policy"]
  resources: ["poddisruptionbudgets"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# disks for KV blocks, where a spec asks for claims
- apiGroups: [""]
  resources: ["persistentvolumeclaims"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# a gateway's right to watch the pods of its namespace
- apiGroups: ["rbac.authorization.k8s.io"]
  resources: ["rolebindings", "roles"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# the token of a Ray cluster, made once and never read back
- apiGroups: [""]
  resources: ["secrets"]
  verbs: ["create"]
# what happened, and why a pod hangs
- apiGroups: [""]
  resources: ["events"]
  verbs: ["create", "list"]
{{- end }}

{{- define "headrace.electionRules" -}}
# the Lease that decides who works, once: a name cannot be asked for here
- apiGroups: ["coordination.k8s.io"]
  resources: ["leases"]
  verbs: ["create"]
# that Lease and no other
- apiGroups: ["coordination.k8s.io"]
  resources: ["leases"]
  resourceNames: [{{ include "headrace.fullname" . | quote }}]
  verbs: ["get", "patch"]
{{- end }}
