"""A real Prometheus scrapes a real run, and evaluates every expression of dashboards and alerts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from eyeline.blocking import BlockingClient
from tests.support import dev_cluster, prometheus
from tests.support.cameras import wait_for
from tests.support.programs import http_get, some_free_ports

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

# The pages, by job as the operator names it.
PAGES = {
    "eyeline-worker": 9610,
    "eyeline-api": 9611,
    "eyeline-web": 9612,
    "eyeline-triton": 8002,
    "eyeline-edge/eyeline-edge-agent": 9600,
}
# Exported once there is one of them; a run that does well has none.
ONLY_WHEN_WRONG = {
    "eyeline_cloud_api_refusals_total",
    "eyeline_cloud_dead_letters_total",
    "eyeline_cloud_degraded_frames_total",
    "eyeline_cloud_keyframe_requests_total",
    "eyeline_edge_delivery_lost_frames_count",
    "eyeline_edge_frames_dropped_total",
    "eyeline_edge_redaction_failed_ratio",
}
# No rollout is under way.
ONLY_WITH_A_CANDIDATE = {
    "eyeline_cloud_rollout_agreement_ratio",
    "eyeline_cloud_rollout_compared_frames_count",
    "eyeline_cloud_rollout_requests_total",
    "eyeline_cloud_rollout_score_shift_ratio",
}
# DCGM's exporter is the cluster's own, and needs a GPU: its names are as it documents them.
ONLY_WITH_A_GPU = {"DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_DEV_FB_USED"}
VARIABLES = {
    "$namespace": ".*",
    "$instance": ".*",
    "$camera": ".*",
    "$model": ".*",
    "$__rate_interval": "30s",
}


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def test_every_expression_on_a_real_run(tmp_path: Path) -> None:
    (port,) = some_free_ports(1)
    with dev_cluster.running(tmp_path) as (cluster, token):
        targets = {
            job: f"{cluster.pod_of(job.rpartition('/')[2]).address}:{page}" for job, page in PAGES.items()
        }
        with (
            prometheus.running(tmp_path / "prometheus", f"127.0.0.1:{port}", targets) as server,
            BlockingClient(f"{cluster.addresses['eyeline-api']}:50051", token) as client,
            client.subscribe(since_ns=1) as results,
        ):

            def scraped() -> bool:
                try:
                    ups = server.query("up")
                except OSError:
                    return False
                return [it["value"][1] for it in ups] == ["1"] * len(PAGES)

            wait_for(scraped, 30, "all targets up")
            # So that each stage has had something to do while it was scraped.
            for _ in range(60):
                next(results)
            for _ in range(3):
                client.detect(np.zeros((90, 120, 3), np.uint8))

            exported = {rule["record"] for rule in prometheus.rules() if "record" in rule} | {"up"}
            for target in targets.values():
                _, page = http_get(f"http://{target}/metrics")
                for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE):
                    exported |= {name, f"{name}_bucket"} if kind == "histogram" else {name}

            # Long enough for two scrapes after the last of it, and the rules on top.
            def busy() -> bool:
                rate = server.query("sum(rate(eyeline_cloud_api_detect_seconds_count[30s]))")
                queued = server.query("eyeline:triton_queued_work:seconds")
                return bool(rate) and float(rate[0]["value"][1]) > 0 and bool(queued)

            wait_for(busy, 30, "rates")
            expressions = prometheus.dashboard_expressions()
            expressions |= {
                f"rule {rule.get('alert') or rule['record']}": [rule["expr"]] for rule in prometheus.rules()
            }
            for where, found in expressions.items():
                for expression in found:
                    names = prometheus.metrics_in(expression)
                    assert names, where
                    assert names <= exported | ONLY_WITH_A_GPU, (
                        f"{where}: nobody exports {names - exported - ONLY_WITH_A_GPU}"
                    )
                    if not where.startswith("rule Eyeline") and not names & (
                        ONLY_WHEN_WRONG | ONLY_WITH_A_CANDIDATE | ONLY_WITH_A_GPU
                    ):
                        wait_for(
                            lambda it=expression: bool(server.query(filled(it))), 15, f"{where}: {expression}"
                        )
                    answer = server.query(filled(expression))
                    for sample in answer:
                        assert sample["value"][1] not in {"+Inf", "-Inf"}, f"{where}: {expression}"
            states = {
                rule["name"]: rule["health"]
                for group in server.get("rules")["groups"]
                for rule in group["rules"]
            }
            assert set(states.values()) == {"ok"}, states
            assert server.alerts() == {}
            # And one that must.
            cluster.pod_of("eyeline-worker").stop()
            wait_for(lambda: server.alerts().get("EyelineNoWorker") == "pending", 20, "the alert")
