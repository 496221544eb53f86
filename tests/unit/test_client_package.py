"""What `import eyeline` offers, and what the bare install can import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import eyeline
from eyeline import blocking, client, errors, subscription, values

_BLOCKED = {
    *("nats", "nkeys", "cv2", "PIL", "av", "onnx", "onnxruntime", "tritonclient", "scipy", "similari"),
    *("pydantic", "pydantic_settings", "yaml", "structlog", "psutil", "prometheus_client", "uvloop"),
    *("grpc_health", "grpc_reflection", "grpc_tools", "edge_agent", "cloud_inference", "eyeline_models"),
}
_BARE = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Block())
{code}
"""


def run_bare(code: str) -> subprocess.CompletedProcess[str]:
    """Run code where only what the bare install brings can be imported."""
    script = _BARE.format(blocked=_BLOCKED, code=code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_package_offers_exactly_this() -> None:
    assert len(set(eyeline.__all__)) == len(eyeline.__all__)
    shown = ast.parse(Path(eyeline.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name
        for block in shown.body
        if isinstance(block, ast.If)
        for statement in ast.walk(block)
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == set(eyeline.__all__)
    homes = (blocking, client, errors, subscription, values)
    for name in eyeline.__all__:
        assert any(getattr(eyeline, name) is vars(home).get(name) for home in homes), name
    assert set(eyeline.__all__) <= set(dir(eyeline))
    api_errors = {name for name, value in vars(errors).items() if _is_client_error(value)}
    assert api_errors <= set(eyeline.__all__)


def _is_client_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.ApiError)


def test_picture_of_the_errors_is_true() -> None:
    picture = errors.__doc__ or ""
    drawn = {line.split("──")[1].split()[0] for line in picture.splitlines() if "──" in line}
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)} - {"EyelineError"}
    assert drawn == {name for name in defined if issubclass(vars(errors)[name], errors.EyelineError)}


def test_client_and_command_need_only_the_bare_install() -> None:
    done = run_bare(
        "import eyeline\n"
        "for name in eyeline.__all__: getattr(eyeline, name)\n"
        "import eyeline.cli\n"
        "sys.argv = ['eyeline', '--help']\n"
        "eyeline.cli.main()\n"
    )
    assert done.returncode == 0, done.stderr
    assert "watch" in done.stdout
    assert not done.stderr


def test_blocking_works() -> None:
    assert "blocked: nats" in run_bare("import nats").stderr


def test_names_on_the_bus_are_light() -> None:
    code = (
        "import sys, eyeline.subjects; print({'grpc', 'numpy', 'google', 'rich', 'typer'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
