"""aigi: (re)build, publish and benchmark datasets of AI-generated images."""

__version__ = "0.1.0"


class AigiError(Exception):
    """An error that the user can act on: what failed, where, and what to do next.

    Raised for bad input, refused settings and failed shards. The command line prints its
    text without a traceback; every other exception is a defect and keeps its traceback.
    """
