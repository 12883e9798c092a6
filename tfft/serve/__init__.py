"""A development server with TF Serving's REST and gRPC interfaces, for trying out an export.

It loads only the SavedModel. Status codes, messages and grammar follow TF Serving's sources; they
were not compared with a TF Serving binary. Use TF Serving in production.
"""

from tfft.serve.serving import Options, serve
from tfft.serve.versions import default_name

__all__ = ["Options", "default_name", "serve"]
