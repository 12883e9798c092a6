"""A development server with TF Serving's interfaces: REST and gRPC, for trying an export out.

It loads nothing but the SavedModel. What answers in production is TF Serving, to which a client
speaks the same way.
"""

from tfft.serve.serving import Options, serve
from tfft.serve.versions import default_name

__all__ = ["Options", "default_name", "serve"]
