"""The edge agent: cameras in, envelopes out, nothing lost on the way.

- capture -> gate -> plan -> redact -> detect -> encode -> batch: the life of a frame, wired by `pipeline`
- `opinion`, `agree`: whether what the edge model sees stands for the cloud's answer
- `local`, `outage`, `local_results`, `watch`: what a device answers while the cloud is away, and who hears it
- `seams`, `stage_health`: what the pipeline needs of its neighbours, and how its stages fail and recover
- `redact`: the one way out for pixels; `redact_mask`, `redact_tracks`, `redact_models`: what it hides
- `calibrate`, `calibrated`, `calibration_files`: a camera's sample and profile
- `sample`, `scene`, `frontier`: the pictures that needs, what they show, and the rung it gives
- `sink` -> `keep` -> `spool` -> `join` -> `forward`: from a camera's thread to the hub, wired by `delivery`
- `pressure`: how much of it the cloud takes, as the cloud says
- `segments`: what the spool holds, chain by chain; `broker`, `spool_stream`, `payloads`: where it holds it
- `link`: a connection that starts afresh after each loss
- `claim`, `clock`, `desired`, `epoch`, `status`: this device's place among others
- `erase`: takes out of the spool what the operator wants erased
- `updates`: what was released for this device, `fetch` and `install` bring it, `launch` runs the newest that
  works, `launch_state` remembers which
- `shared_model`, `camera_status`: one model for all cameras, what each tells; `only_one`: one agent a folder
- `agent`: the process; `cli`, `check`, `setup`, `service`: the `edge-agent` command
- `config`: the settings; `errors`: the tree of errors
"""
