"""Eyeline: the contract between edge, cloud and applications, and the client SDK.

- `eyeline.v1`: generated protobuf and gRPC stubs (the `.proto` files stand beside them)
- `subjects`: names on the bus
- `envelope`: encode and parse what an agent publishes
- `values`: plain values with numpy boxes
- `errors`: the tree of errors
- `bus`: connecting to NATS (needs `nats-py`, which the extras bring)
- `log`: structured logging for our processes
- `client`: the client SDK; `cli`: the `eyeline` command
"""
