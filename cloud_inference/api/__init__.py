"""The gRPC API: `server` serves `results`, `inference` and `devices`; `auth` says who asks for what."""
