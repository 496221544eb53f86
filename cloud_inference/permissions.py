"""What devices and tenants may do on the hub.

Permissions alone do not hold a device: whoever may ask a stream anything chooses where the answer goes, and
the server writes it there in its own right, be it into another device's frames or as an order to delete a
stream. So each device has an account of its own that shares a few subjects with its tenant's: an answer comes
back to the device's account, where no more than those few can be reached. For the same reason a tenant's
audit log is in an account beside the tenant's, in which worker and API may do everything.
"""

from __future__ import annotations

from cloud_inference.nats_jwt import Share
from eyeline import subjects

_API = "$JS.API"
# No device may ask it, but without it an account's other questions go to its own JetStream (2.15.1).
_INFO = f"{_API}.INFO"


def device_permissions(site: str, device: str) -> dict[str, dict[str, list[str]]]:
    """What a device may publish and subscribe to, as nats-server's `permissions`.

    Its own frames, calibration samples, status and control requests; claims of its own site; its own desired
    configuration, releases and profiles; artefacts of its tenant. The streams' own inbox is private, so that
    no device reads what another one asked for.
    """
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
        f"{_API}.STREAM.INFO.{subjects.ASKED}",
        f"{_API}.DIRECT.GET.{claims}.{own_claims}",
        f"{_API}.DIRECT.GET.{desired}.{own_desired}",
        f"{_API}.DIRECT.GET.{profiles}.{own_profiles}",
        *(
            f"{_API}.DIRECT.GET.KV_{subjects.RELEASES}.$KV.{subjects.RELEASES}.{kind}.{whom}"
            for kind in ("config", "model", "agent")
            for whom in (f"device.{site}.{device}", f"site.{site}", "all")
        ),
        # Message by message; what is in them is signed, and no secret of any device.
        f"{_API}.DIRECT.GET.OBJ_{subjects.ARTEFACTS}",
    ]
    subscribe = [subjects.control_subject(site, device), f"{subjects.device_inbox(site, device)}.>"]
    return {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}}


def tenant_exports() -> list[Share]:
    """What a tenant's account shares with its devices' accounts, each of which imports its own part only."""
    return [
        Share(subjects.frame_subject("*", "*", "*")),
        Share(subjects.sample_subject("*", "*", "*")),
        Share(subjects.status_subject("*", "*")),
        Share(f"$KV.{subjects.CLAIMS}.{subjects.camera_key('*', '*')}"),
        Share(_INFO),
        Share(f"{_API}.STREAM.INFO.{subjects.ASKED}"),
        Share(f"{_API}.DIRECT.GET.>"),
        Share(subjects.control_subject("*", "*"), "stream"),
    ]


def device_imports(tenant: str, site: str, device: str) -> list[Share]:
    """What a device's account has of its tenant's, whose public key is `tenant`."""
    asks = [_INFO, *device_permissions(site, device)["publish"]["allow"]]
    heard = subjects.control_subject(site, device)
    return [*(Share(subject, account=tenant) for subject in asks), Share(heard, "stream", tenant)]


def audit_exports() -> list[Share]:
    """What the account with a tenant's audit log lets the tenant do: make it, add to it, and read it."""
    calls = ("STREAM.INFO", "STREAM.CREATE", "STREAM.MSG.GET", "DIRECT.GET")
    return [Share(subjects.AUDIT_SUBJECT), *(Share(f"{_API}.{call}.{subjects.AUDIT}") for call in calls)]


def tenant_imports(audit: str) -> list[Share]:
    """What a tenant's account has of the one with its audit log, whose public key is `audit`."""
    return [
        Share(it.subject, account=audit, local=it.subject.replace(_API, subjects.AUDIT_API, 1))
        for it in audit_exports()
    ]
