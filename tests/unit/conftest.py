"""One Hypothesis profile for all: no deadline for a single example, since a busy machine is not a failure."""

from hypothesis import settings

settings.register_profile("hookhare", deadline=None)
settings.load_profile("hookhare")
