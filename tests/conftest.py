"""Property tests ask the same examples each time, so that a red check is about the change at hand; `make explore` asks
new ones."""

from hypothesis import settings

settings.register_profile("check", derandomize=True, print_blob=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile("check")
