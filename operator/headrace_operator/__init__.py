"""Headrace's operator: turns an InferenceDeployment into objects, and tells the truth about them in its status."""
