"""Imported before gRPC by programs whose every line on stderr is meant: gRPC logs there by itself."""

from __future__ import annotations

import os

# Read once, when gRPC is loaded. Errors still reach us as statuses.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
