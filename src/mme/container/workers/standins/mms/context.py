"""The names of multi-model-server's context that handlers annotate their functions with."""

from mme.container.workers.context import Context, RequestProcessor

__all__ = ["Context", "RequestProcessor"]
