"""A development server with TF Serving's interfaces: REST and gRPC, for trying an export out.

It loads nothing but the SavedModel. Status codes, texts and grammar follow TF Serving's sources; no
TF Serving binary was compared. In production TF Serving answers.
"""

from tfft.serve.serving import Options, serve
from tfft.serve.versions import default_name

__all__ = ["Options", "default_name", "serve"]
