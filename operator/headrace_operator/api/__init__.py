"""The InferenceDeployment API: its types, its rules, and the files that are generated from them.

Reading order: `v1alpha1` (the spec as a whole; its parts stand in modules named after them), `parse` (object in, spec
or problems out), `rules` with `checks` (what must hold between fields), `supported` (what this version acts on),
`effective` (what a role really runs with), `conditions` and `status` (what is reported), `crd` and `reference` (what
is generated). Pure: nothing here reads a clock, a file or a cluster.
"""
