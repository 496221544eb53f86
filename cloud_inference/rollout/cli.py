"""`cloud-inference models canary | shadow | promote | rollback | rollout | drift`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import nats.errors
import typer
from nats.js.errors import APIError, KeyNotFoundError, NoKeysError
from nats.js.kv import KeyValue

from cloud_inference.operate import connect
from cloud_inference.rollout import compare, plan
from cloud_inference.rollout.compare import Seen
from cloud_inference.rollout.plan import Policy, Rollout
from eyeline import log, subjects
from eyeline.errors import BusError, ConfigError
from eyeline.subjects import check_pattern
from eyeline_models import catalogue

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="The cloud's settings [default: local's].")
]
State = Annotated[Path | None, typer.Option(help="Folder of cloud-inference local [default: as for local].")]
Tenant = Annotated[str | None, typer.Option(help="Whose cameras [default: the only one's].")]
Model = Annotated[str, typer.Argument(help="The candidate: a model of the catalogue that Triton serves.")]
Cameras = Annotated[list[str] | None, typer.Option(help="SITE/CAMERA, either may be '*' [default: */*].")]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="JSON with bounds; see `models rollout` for those in use.")
]
NoPolicy = Annotated[bool, typer.Option("--no-policy", help="Only a person ends it.")]
Why = Annotated[str, typer.Option(help="For the history.")]


T = TypeVar("T")


def register(app: typer.Typer) -> None:
    """Add the commands to `cloud-inference models`."""
    for command in (canary, shadow, promote, rollback, rollout, drift):
        app.command()(command)


def canary(
    model: Model,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the cameras; each stays where it is.")] = 0.1,
    cameras: Cameras = None,
    compare_every: Annotated[int, typer.Option(min=1, help="Frames per comparison with the stable one.")] = 4,
    policy: PolicyFile = None,
    no_policy: NoPolicy = False,
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
) -> None:
    """Let the candidate answer for a share of the cameras; the policy rolls it back if it is worse."""
    changes = _wishes(share, cameras, policy, no_policy=no_policy) | {"compare_every": compare_every}
    _begin(model, "canary", changes, config, state, tenant)


def shadow(
    model: Model,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the frames.")] = 0.1,
    cameras: Cameras = None,
    policy: PolicyFile = None,
    no_policy: NoPolicy = False,
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
) -> None:
    """Ask the candidate too about a share of the frames; the stable model's answers count."""
    _begin(model, "shadow", _wishes(share, cameras, policy, no_policy=no_policy), config, state, tenant)


def promote(why: Why = "", config: Config = None, state: State = None, tenant: Tenant = None) -> None:
    """Make the candidate the stable model."""

    def change(now: Rollout) -> Rollout:
        if not now.running:
            raise ConfigError("no candidate is running: begin with models canary or models shadow")
        return now.promoted(by=connect.operator(), at_s=time.time(), why=why)

    print(_one_line(_changed(change, config, state, tenant)))


def rollback(why: Why = "", config: Config = None, state: State = None, tenant: Tenant = None) -> None:
    """Back to the stable model alone; without a candidate, to the model that was stable before."""

    def change(now: Rollout) -> Rollout:
        by, at_s = connect.operator(), time.time()
        if now.running:
            return now.rolled_back(by=by, at_s=at_s, why=why)
        if now.stable is None:
            raise ConfigError("no candidate is running, and the settings' own model is the stable one")
        before = now.model_copy(update={"candidate": now.stable, "stable": now.before, "before": None})
        return before.rolled_back(by=by, at_s=at_s, why=why)

    print(_one_line(_changed(change, config, state, tenant)))


def rollout(
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What is running, how the two compare, and what was done before."""

    async def read(bucket: KeyValue) -> tuple[Rollout, Seen]:
        now, _ = await _current(bucket)
        total = Seen(now.id)
        for key in await _keys(bucket, plan.SEEN_PREFIX):
            seen = Seen.from_json((await bucket.get(key)).value or b"")
            if seen is not None and seen.rollout == now.id:
                total += seen
        return now, total

    now, total = _with_bucket(read, config, state, tenant)
    if as_json:
        print(json.dumps({"rollout": now.model_dump(), "seen": json.loads(total.to_json())}))
        return
    print(_one_line(now))
    if now.running:
        print(compare.figures(total))
        if now.policy is not None:
            print("policy: " + ", ".join(f"{key} {value}" for key, value in now.policy.model_dump().items()))
    for event in now.history:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.at_s))
        print(f"{when}  {event.what}, by {event.by}{': ' + event.why if event.why else ''}")


def drift(
    config: Config = None,
    state: State = None,
    tenant: Tenant = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How far each camera's pictures and answers have moved from its first ones; above 0.25 is much."""

    async def read(bucket: KeyValue) -> dict[str, dict[str, float]]:
        found = {}
        for key in await _keys(bucket, plan.DRIFT_PREFIX):
            stored = json.loads((await bucket.get(key)).value or b"{}")
            found[key.removeprefix(plan.DRIFT_PREFIX).replace(".", "/")] = stored.get("psi", {})
        return found

    found = _with_bucket(read, config, state, tenant)
    if as_json:
        print(json.dumps(found))
        return
    for camera, psi in sorted(found.items(), key=lambda it: -max(it[1].values(), default=0.0)):
        print(f"{camera:<32} " + "  ".join(f"{name} {value:.2f}" for name, value in psi.items()))


def _wishes(
    share: float, cameras: list[str] | None, policy: Path | None, *, no_policy: bool
) -> dict[str, Any]:
    for pattern in cameras or ():
        check_pattern(pattern)
    wished: Policy | None = None if no_policy else Policy()
    if policy is not None:
        try:
            wished = Policy.model_validate(json.loads(policy.read_text(encoding="utf-8")))
        except (OSError, ValueError) as problem:
            raise ConfigError(f"--policy {policy}: {str(problem).splitlines()[0]}") from None
    return {
        "share": share,
        "cameras": tuple(cameras or ["*/*"]),
        "policy": wished.model_dump() if wished else None,
    }


def _begin(
    model: str,
    mode: plan.Mode,
    changes: dict[str, Any],
    config: Path | None,
    state: Path | None,
    tenant: str | None,
) -> None:
    name = catalogue.load(model).name

    def change(now: Rollout) -> Rollout:
        return now.begin(name, mode, by=connect.operator(), at_s=time.time(), **changes)

    print(_one_line(_changed(change, config, state, tenant)))


def _one_line(now: Rollout) -> str:
    stable = now.stable or "the settings' model"
    if not now.running:
        return f"{stable} answers for every camera"
    where = ", ".join(now.cameras)
    if now.mode == "canary":
        return f"{now.candidate} answers for {now.share:.0%} of {where}, {stable} for the rest"
    return f"{stable} answers; {now.candidate} is asked too about {now.share:.0%} of {where}"


def _changed(
    change: Callable[[Rollout], Rollout], config: Path | None, state: Path | None, tenant: str | None
) -> Rollout:
    async def work(bucket: KeyValue) -> Rollout:
        now, revision = await _current(bucket)
        new = change(now)
        try:
            # 0: there must be none yet.
            await bucket.update(plan.KEY, new.to_json(), last=revision)
        except APIError:
            raise BusError("the rollout was changed meanwhile: look at it again") from None
        return new

    return _with_bucket(work, config, state, tenant)


async def _current(bucket: KeyValue) -> tuple[Rollout, int]:
    try:
        entry = await bucket.get(plan.KEY)
    except KeyNotFoundError:
        return Rollout(), 0
    return Rollout.from_json(entry.value or b""), entry.revision or 0


async def _keys(bucket: KeyValue, prefix: str) -> list[str]:
    try:
        return [key for key in await bucket.keys() if key.startswith(prefix)]
    except NoKeysError:
        return []


def _with_bucket(
    work: Callable[[KeyValue], Awaitable[T]], config: Path | None, state: Path | None, tenant: str | None
) -> T:
    from cloud_inference.cli import default_state_dir

    log.configure(level="error")
    settings = connect.settings(config, state or default_state_dir())

    async def run() -> T:
        async with connect.account(settings, tenant) as account:
            try:
                return await work(await account.js.key_value(subjects.MODELS))
            except (TimeoutError, nats.errors.Error, APIError) as problem:
                raise BusError(f"bucket {subjects.MODELS}: {problem}") from None

    return asyncio.run(run())
