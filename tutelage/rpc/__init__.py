"""Servers, channels and errors over gRPC, the same for every service."""
