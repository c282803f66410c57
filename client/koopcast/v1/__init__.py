"""Generated protobuf and gRPC stubs of koopcast.v1. Written by proto/generate.py; do not edit."""
