"""Headrace's operator: turns an InferenceDeployment into objects, and tells the truth about them in its status."""

__version__ = "0.1.0"
"""The one place of the version: the build and the images read it here, for an image holds source without metadata."""
