"""The domain in plain, frozen dataclasses: no I/O, no torch, no gRPC."""
