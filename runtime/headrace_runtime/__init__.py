"""Headrace's runtime: the processes inside the pods (node agent, Ray head, gateway)."""
