"""What other people's tools say about manifests, Dockerfiles and rules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import prometheus
from tests.support.debian import need
from tests.support.manifests import K8S, OVERLAYS, ROOT, overlay_text

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def run(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run([str(it) for it in command], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_checkov_finds_nothing_but_what_is_justified(tmp_path: Path) -> None:
    status, said = run(ROOT / ".ci" / "install-checkov")
    assert status == 0, said
    files: list[str | Path] = []
    for name in OVERLAYS:
        (tmp_path / f"{name}.yaml").write_text(overlay_text(name))
        files += ["--file", tmp_path / f"{name}.yaml"]
    checkov = ROOT / ".cache" / "checkov" / "venv" / "bin" / "checkov"
    status, said = run(
        checkov, "--config-file", K8S / "checkov.yaml", "--compact", "--quiet", "-o", "json", *files
    )
    assert status == 0, said[-3000:]
    summary = json.JSONDecoder().raw_decode(said, said.index("{"))[0]["summary"]
    assert summary["failed"] == 0
    assert summary["passed"] > 300


def test_dockerfiles() -> None:
    files = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
    assert len(files) == 4
    status, said = run(Path(sys.executable).with_name("hadolint"), *files)
    assert status == 0, said
    for file in files:
        assert "USER 10001:10001" in file.read_text()


def test_promtool_checks_the_rules(tmp_path: Path) -> None:
    need("prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": prometheus.groups()}))
    status, said = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", tmp_path / "rules.yaml")
    assert status == 0, said


# What each alert fires on: series with their values every 15 s, and the labels that it then has.
N = {"namespace": "eyeline"}
EDGE = 'namespace="eyeline",instance="d"'
FIRES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "EyelineNoWorker": ({'up{job="eyeline-worker",namespace="eyeline"}': "0x80"}, {}),
    "EyelineHubAway": (
        {
            'eyeline_cloud_hub_answers_ratio{namespace="eyeline",tenant="t",pod="a"}': "1x60 0x20",
            'eyeline_cloud_hub_answers_ratio{namespace="eyeline",tenant="t",pod="b"}': "0x80",
        },
        N | {"tenant": "t"},
    ),
    "EyelineHubFilling": (
        {'eyeline_cloud_frames_stored_ratio{namespace="eyeline",tenant="t"}': "0.9x80"},
        N | {"tenant": "t"},
    ),
    "EyelineTargetDown": (
        {'up{job="eyeline-api",namespace="eyeline",instance="a"}': "0x80"},
        N | {"job": "eyeline-api", "instance": "a"},
    ),
    "EyelineLagging": (
        {'eyeline_cloud_lag_seconds{namespace="eyeline",tenant="t",lane="live"}': "7x80"},
        N | {"tenant": "t"},
    ),
    "EyelineOverloaded": (
        {
            'eyeline_cloud_thinned_pictures_total{namespace="eyeline",tenant="t"}': "0+30x80",
            'eyeline_cloud_pictures_total{namespace="eyeline",tenant="t",lane="live"}': "0+100x80",
        },
        N | {"tenant": "t"},
    ),
    "EyelineAnswersSlow": (
        {
            'eyeline_cloud_answer_seconds_bucket{namespace="eyeline",le="10"}': "0x80",
            'eyeline_cloud_answer_seconds_bucket{namespace="eyeline",le="30"}': "0+9x80",
            'eyeline_cloud_answer_seconds_bucket{namespace="eyeline",le="+Inf"}': "0+9x80",
        },
        N,
    ),
    "EyelineDegradedAnswers": (
        {
            'eyeline_cloud_degraded_frames_total{namespace="eyeline",tenant="t",reason="lost"}': "0+2x80",
            'eyeline_cloud_frames_total{namespace="eyeline",tenant="t",provenance="cloud"}': "0+98x80",
            'eyeline_cloud_frames_total{namespace="eyeline",tenant="t",provenance="degraded"}': "0+2x80",
        },
        N | {"tenant": "t"},
    ),
    "EyelineDeadLetters": (
        {'eyeline_cloud_dead_letters_total{namespace="eyeline",tenant="t",reason="invalid"}': "_x70 1x10"},
        N | {"tenant": "t", "reason": "invalid"},
    ),
    "EyelineInferenceAway": ({'eyeline_cloud_infer_retries_total{namespace="eyeline"}': "0+15x80"}, N),
    "EyelineFencedWrites": ({'eyeline_cloud_fenced_writes_total{namespace="eyeline"}': "0+1x80"}, N),
    "EyelineTritonFailures": (
        {'nv_inference_request_failure{namespace="eyeline",model="m",reason="BACKEND"}': "0+9x80"},
        N | {"model": "m", "reason": "BACKEND"},
    ),
    "EyelineTritonQueue": (
        {
            'nv_inference_pending_request_count{namespace="eyeline",model="m"}': "60x80",
            # 10 images a second, alone in their batches, 30 ms each.
            'nv_inference_compute_infer_duration_us{namespace="eyeline",model="m"}': "0+4500000x80",
            'nv_inference_exec_count{namespace="eyeline",model="m"}': "0+150x80",
            'nv_inference_request_success{namespace="eyeline",model="m"}': "0+150x80",
            'nv_inference_count{namespace="eyeline",model="m"}': "0+150x80",
        },
        N,
    ),
    "EyelineModelRolledBack": (
        {
            'eyeline_cloud_rollout_decisions_total{namespace="eyeline",tenant="t",decision="rollback"}': (
                "0x70 1x10"
            )
        },
        N | {"tenant": "t"},
    ),
    "EyelineCandidateDisagrees": (
        {
            'eyeline_cloud_rollout_agreement_ratio{namespace="eyeline",pod="p",tenant="t"}': "0.5x80",
            'eyeline_cloud_rollout_compared_frames_count{namespace="eyeline",pod="p",tenant="t"}': "500x80",
            'eyeline_cloud_rollout_share_ratio{namespace="eyeline",pod="p",tenant="t"}': "0.1x80",
        },
        N | {"tenant": "t"},
    ),
    "EyelineDrift": (
        {
            'eyeline_cloud_drifting_cameras_count{namespace="eyeline",tenant="t",feature="brightness"}': (
                "2x180"
            )
        },
        N | {"tenant": "t", "feature": "brightness"},
    ),
    "EyelineApiFailing": (
        {'eyeline_cloud_api_refusals_total{namespace="eyeline",status="internal"}': "0+1x80"},
        N | {"status": "internal"},
    ),
    "EyelineUnreadableResults": ({'eyeline_cloud_api_unreadable_total{namespace="eyeline"}': "0x70 3x10"}, N),
    "EyelineDeviceOffline": (
        {'eyeline_edge_hub_connected_ratio{namespace="eyeline",instance="d"}': "0x80"},
        N | {"instance": "d"},
    ),
    "EyelineSpoolOld": (
        {
            'eyeline_edge_hub_connected_ratio{namespace="eyeline",pod="p"}': "1x80",
            'eyeline_edge_spool_oldest_age_seconds{namespace="eyeline",pod="p"}': "900x80",
        },
        N | {"pod": "p"},
    ),
    "EyelineFramesLost": (
        {
            f'eyeline_edge_delivery_lost_frames_count{{{EDGE},reason="full"}}': "_x70 5x10",
        },
        N | {"instance": "d", "reason": "full"},
    ),
    "EyelineCameraSilent": (
        {
            f'eyeline_edge_frames_total{{{EDGE},camera="c",outcome="idle"}}': "0+5x20 100x60",
        },
        N | {"instance": "d", "camera": "c"},
    ),
    "EyelineCameraClosed": (
        {'eyeline_edge_redaction_failed_ratio{namespace="eyeline",camera="c"}': "1x80"},
        N | {"camera": "c"},
    ),
    "EyelineClockUnsure": (
        {'eyeline_edge_clock_uncertainty_seconds{namespace="eyeline",instance="d"}': "0.5x80"},
        N | {"instance": "d"},
    ),
}
# The same for another reason.
FIRES_TOO: list[tuple[str, dict[str, str], dict[str, str]]] = [
    # Another namespace has workers.
    (
        "EyelineNoWorker",
        {
            'up{job="eyeline-worker",namespace="eyeline"}': "1x80",
            'up{job="eyeline-api",namespace="eyeline"}': "1x80",
            'up{job="eyeline-api",namespace="acme"}': "1x80",
        },
        {"namespace": "acme"},
    ),
    # Not the first of their reason.
    (
        "EyelineDeadLetters",
        {'eyeline_cloud_dead_letters_total{namespace="eyeline",tenant="t",reason="invalid"}': "3x70 4x10"},
        N | {"tenant": "t", "reason": "invalid"},
    ),
    (
        "EyelineFramesLost",
        {f'eyeline_edge_delivery_lost_frames_count{{{EDGE},reason="full"}}': "7x70 9x10"},
        N | {"instance": "d", "reason": "full"},
    ),
    # Workers that never got to their first request.
    (
        "EyelineInferenceAway",
        {'eyeline_cloud_inference_ready_ratio{namespace="eyeline",pod="a"}': "0x80"},
        N,
    ),
]
# A system that does well: nothing fires. The lone fenced write is a failover.
QUIET = {
    'up{job="eyeline-worker",namespace="eyeline"}': "1x80",
    'up{job="eyeline-api",namespace="eyeline"}': "1x80",
    # One worker of two is cut off, and another one is just starting.
    'eyeline_cloud_hub_answers_ratio{namespace="eyeline",tenant="t",pod="a"}': "0x80",
    'eyeline_cloud_hub_answers_ratio{namespace="eyeline",tenant="t",pod="b"}': "1x80",
    'eyeline_cloud_inference_ready_ratio{namespace="eyeline",pod="a"}': "0x80",
    'eyeline_cloud_inference_ready_ratio{namespace="eyeline",pod="b"}': "1x80",
    'eyeline_cloud_frames_stored_ratio{namespace="eyeline",tenant="t"}': "0.1x80",
    # Long ago.
    'eyeline_cloud_dead_letters_total{namespace="eyeline",tenant="t",reason="invalid"}': "3x80",
    'eyeline_edge_delivery_lost_frames_count{namespace="eyeline",instance="d",reason="full"}': "9x80",
    'eyeline_cloud_lag_seconds{namespace="eyeline",tenant="t",lane="live"}': "0.2x80",
    'eyeline_cloud_lag_seconds{namespace="eyeline",tenant="t",lane="backlog"}': "4000x80",
    'eyeline_cloud_frames_total{namespace="eyeline",tenant="t",provenance="cloud"}': "0+98x80",
    'eyeline_cloud_degraded_frames_total{namespace="eyeline",tenant="t",reason="lost"}': "3x80",
    'eyeline_cloud_infer_retries_total{namespace="eyeline"}': "40x80",
    'eyeline_cloud_fenced_writes_total{namespace="eyeline"}': "0x30 1x50",
    'nv_inference_request_failure{namespace="eyeline",model="m",reason="CANCELED"}': "0+99x80",
    'nv_inference_pending_request_count{namespace="eyeline",model="m"}': "0x80",
    'eyeline_cloud_api_refusals_total{namespace="eyeline",status="unauthenticated"}': "0+1x80",
    'eyeline_edge_hub_connected_ratio{namespace="eyeline",instance="d"}': "1x80",
    'eyeline_edge_frames_total{namespace="eyeline",instance="d",camera="c",outcome="idle"}': "0+150x80",
    'eyeline_edge_redaction_failed_ratio{namespace="eyeline",camera="c"}': "0x80",
    'eyeline_edge_clock_uncertainty_seconds{namespace="eyeline",instance="d"}': "0.01x80",
}
WORKER = 'namespace="eyeline",tenant="t",pod="w"'
# Seconds of work: series, expression and the value it has at the end.
WORK: list[tuple[dict[str, str], str, float]] = [
    # A message costs 20 ms of processor, 150 wait: 3 s, also while all of them are stuck.
    (
        {
            f'process_cpu_seconds_total{{{WORKER},job="eyeline-worker"}}': "0+9x60 540x20",
            f'eyeline_cloud_taken_messages_total{{{WORKER},lane="live"}}': "0+450x60 27000x20",
            f'eyeline_cloud_waiting_messages_count{{{WORKER},lane="live"}}': "0x60 150x20",
        },
        "eyeline:worker_live_work:seconds",
        3.0,
    ),
    # Nobody has measured what one costs yet: 0.2 s.
    (
        {f'eyeline_cloud_waiting_messages_count{{{WORKER},lane="live"}}': "15x80"},
        "eyeline:worker_live_work:seconds",
        3.0,
    ),
    # 30 of 40 messages a second are live: three quarters of a processor, of the whole that is busy.
    (
        {
            f'process_cpu_seconds_total{{{WORKER},job="eyeline-worker"}}': "0+15x80",
            f'eyeline_cloud_taken_messages_total{{{WORKER},lane="live"}}': "0+450x80",
            f'eyeline_cloud_taken_messages_total{{{WORKER},lane="backlog"}}': "0+150x80",
        },
        "eyeline:worker_live_busy:ratio",
        0.75,
    ),
    # An hours-old backlog is capped, and adds nothing to the live lane.
    (
        {
            f'process_cpu_seconds_total{{{WORKER},job="eyeline-worker"}}': "0+15x80",
            f'eyeline_cloud_taken_messages_total{{{WORKER},lane="backlog"}}': "0+450x80",
            f'eyeline_cloud_waiting_messages_count{{{WORKER},lane="backlog"}}': "9000000x80",
        },
        "eyeline:worker_backlog_work:seconds",
        2400.0,
    ),
    # Six servers are busy, five of them with a backlog: that counts for two at 0.7.
    (
        {
            'nv_inference_compute_infer_duration_us{namespace="eyeline",model="m"}': "0+90000000x80",
            'nv_inference_exec_count{namespace="eyeline",model="m"}': "0+300x80",
            'nv_inference_request_success{namespace="eyeline",model="m"}': "0+300x80",
            'nv_inference_pending_request_count{namespace="eyeline",model="m"}': "60x80",
            f'eyeline_cloud_pictures_total{{{WORKER},lane="live"}}': "0+100x80",
            f'eyeline_cloud_pictures_total{{{WORKER},lane="backlog"}}': "0+500x80",
        },
        "eyeline:triton_wanted:ratio",
        2.4,
    ),
    (
        {
            'nv_inference_compute_infer_duration_us{namespace="eyeline",model="m"}': "0+12000000x80",
            'nv_inference_exec_count{namespace="eyeline",model="m"}': "0+300x80",
            'nv_inference_request_success{namespace="eyeline",model="m"}': "0+300x80",
            'nv_inference_count{namespace="eyeline",model="m"}': "0+300x80",
            'nv_inference_pending_request_count{namespace="eyeline",model="m"}': "50x80",
            f'eyeline_cloud_pictures_total{{{WORKER},lane="live"}}': "0+100x80",
            f'eyeline_cloud_pictures_total{{{WORKER},lane="backlog"}}': "0+300x80",
        },
        "eyeline:triton_live_work:seconds",
        0.5,
    ),
    # A server that is always busy, and three times as much was left out.
    (
        {
            'nv_inference_compute_infer_duration_us{namespace="eyeline",model="m"}': "0+15000000x80",
            'nv_inference_exec_count{namespace="eyeline",model="m"}': "0+150x80",
            'nv_inference_request_success{namespace="eyeline",model="m"}': "0+150x80",
            'nv_inference_count{namespace="eyeline",model="m"}': "0+150x80",
            'nv_inference_pending_request_count{namespace="eyeline",model="m"}': "10x80",
            f'eyeline_cloud_pictures_total{{{WORKER},lane="live"}}': "0+150x80",
            f"eyeline_cloud_thinned_pictures_total{{{WORKER}}}": "0+450x80",
        },
        "eyeline:triton_wanted:ratio",
        4.0,
    ),
    # Idle: a zero, not a missing metric.
    ({'nv_inference_count{namespace="eyeline",model="m"}': "7x80"}, "eyeline:triton_busy:ratio", 0.0),
    (
        {'nv_inference_pending_request_count{namespace="eyeline",model="m"}': "0x80"},
        "eyeline:triton_queued_work:seconds",
        0.0,
    ),
    # 20 requests a second in batches of 4, 40 ms each batch: a fifth of the time.
    (
        {
            'nv_inference_compute_infer_duration_us{namespace="eyeline",model="m"}': "0+12000000x80",
            'nv_inference_exec_count{namespace="eyeline",model="m"}': "0+75x80",
            'nv_inference_request_success{namespace="eyeline",model="m"}': "0+300x80",
            'nv_inference_count{namespace="eyeline",model="m"}': "0+300x80",
        },
        "eyeline:triton_busy:ratio",
        0.2,
    ),
]


def series(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": it} for name, it in values.items()]


def case(values: dict[str, str], alerts: dict[str, dict[str, str] | None]) -> dict[str, Any]:
    """A test of promtool: what fires, with which labels, after 20 minutes."""
    return {
        "interval": "15s",
        "input_series": series(values),
        "alert_rule_test": [
            {
                "eval_time": "20m",
                "alertname": name,
                "exp_alerts": [] if labels is None else [{"exp_labels": labels}],
            }
            for name, labels in alerts.items()
        ],
    }


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    need("prometheus")
    # Without annotations, which promtool would compare too; a real server expands them below.
    bare = [
        {**group, "rules": [{k: v for k, v in rule.items() if k != "annotations"} for rule in group["rules"]]}
        for group in prometheus.groups()
    ]
    alerts = {rule["alert"]: rule for rule in prometheus.rules() if "alert" in rule}
    assert set(FIRES) == set(alerts)
    for rule in alerts.values():
        assert {"summary", "runbook"} <= set(rule["annotations"])
    cases = [
        case(values, {name: labels | alerts[name]["labels"]}) for name, (values, labels) in FIRES.items()
    ]
    cases += [case(values, {name: labels | alerts[name]["labels"]}) for name, values, labels in FIRES_TOO]
    cases.append(case(QUIET, dict.fromkeys(alerts)))
    for values, record, value in WORK:
        expected = [{"labels": f'{record}{{namespace="eyeline"}}', "value": value}]
        cases.append(
            {
                "interval": "15s",
                "input_series": series(values),
                "promql_expr_test": [{"expr": record, "eval_time": "20m", "exp_samples": expected}],
            }
        )
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": bare}))
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    status, said = run("promtool", "test", "rules", tmp_path / "tests.yaml")
    assert status == 0, said
