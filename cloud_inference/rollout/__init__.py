"""Two versions of a model side by side: who is asked, how they compare, and what comes of it.

- `plan`: the rollout as it stands in the tenant's bucket, and which cameras it covers
- `compare`: what was seen of both, added up by every worker; and what a policy makes of it
- `router`: in the worker: asks the one, the other or both for a frame; counts, publishes, decides
- `drift`: how far a camera's pictures and answers have moved from what they were
- `cli`: `cloud-inference models canary | shadow | promote | rollback | rollout | drift`
"""
