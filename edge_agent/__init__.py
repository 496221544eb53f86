"""The edge agent: cameras in, envelopes out, nothing lost on the way.

- capture -> gate -> detect -> plan -> encode -> batch: the life of a frame, wired by `pipeline`
- `sink` -> `keep` -> `spool` -> `forward`: from a camera's thread to the hub, wired by `delivery`
- `segments`: what the spool holds, chain by chain; `broker`, `spool_stream`, `payloads`: where it holds it
- `link`: a connection that starts afresh after each loss
- `claim`, `clock`, `desired`, `epoch`, `status`: this device's place among others
- `agent`: the process; `cli`, `check`, `setup`, `service`: the `edge-agent` command
- `config`: the settings; `errors`: the tree of errors
"""
