"""What devices, workers and the API may do on the hub."""

from __future__ import annotations

from eyeline import subjects


def device_permissions(site: str, device: str) -> dict[str, dict[str, list[str]]]:
    """What a device may publish and subscribe to, as nats-server's `permissions`.

    Its own frames, calibration samples, status and control requests; claims of its own site; its own desired
    configuration, releases and profiles; artefacts of its tenant. The streams' own inbox is private, so that
    no device reads what another one asked for.
    """
    api = "$JS.API"
    claims, desired, profiles = (
        f"KV_{bucket}" for bucket in (subjects.CLAIMS, subjects.DESIRED, subjects.PROFILES)
    )
    own_claims = f"$KV.{subjects.CLAIMS}.{subjects.camera_key(site, '*')}"
    own_desired = f"$KV.{subjects.DESIRED}.{subjects.desired_key(site, device)}"
    own_profiles = f"$KV.{subjects.PROFILES}.{subjects.profile_key(site, device, '*')}"
    publish = [
        subjects.frame_subject(site, device, "*"),
        subjects.sample_subject(site, device, "*"),
        subjects.status_subject(site, device),
        own_claims,
        f"{api}.INFO",
        # Waiting for the cloud to make them, and opening the buckets.
        *(f"{api}.STREAM.INFO.{stream}" for stream in (subjects.FRAMES, subjects.STATUS, claims, desired)),
        f"{api}.DIRECT.GET.{claims}.{own_claims}",
        f"{api}.DIRECT.GET.{desired}.{own_desired}",
        f"{api}.DIRECT.GET.{profiles}.{own_profiles}",
        *(
            f"{api}.DIRECT.GET.KV_{subjects.RELEASES}.$KV.{subjects.RELEASES}.{kind}.{whom}"
            for kind in ("config", "model", "agent")
            for whom in (f"device.{site}.{device}", f"site.{site}", "all")
        ),
        # Message by message; what is in them is signed, and no secret of any device.
        f"{api}.DIRECT.GET.OBJ_{subjects.ARTEFACTS}",
    ]
    subscribe = [subjects.control_subject(site, device), f"{subjects.device_inbox(site, device)}.>"]
    return {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}}


def cloud_permissions() -> dict[str, dict[str, list[str]]]:
    """What worker and API may do in their tenant's account: everything, but make the audit log forget."""
    calls = ("STREAM.DELETE", "STREAM.UPDATE", "STREAM.PURGE", "STREAM.MSG.DELETE")
    domains = ("$JS.API", f"$JS.{subjects.HUB_DOMAIN}.API")
    denied = [f"{domain}.{call}.{subjects.AUDIT}" for domain in domains for call in calls]
    # A snapshot that is put back would be another way.
    denied += [f"{domain}.STREAM.RESTORE.{subjects.AUDIT}" for domain in domains]
    return {"publish": {"deny": denied}, "subscribe": {}}
