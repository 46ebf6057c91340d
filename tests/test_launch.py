"""The files that start training on clusters: complete, accepted by the schemas of their systems, with valid options."""

import math
import os
import re
import shlex
import string
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from melody_jax.config import load_config
from melody_jax.sharding import check_batch

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
JOBSET: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
        "spec": {
            "type": "object",
            "required": ["replicatedJobs"],
            "additionalProperties": False,
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"maxRestarts": {"type": "integer", "minimum": 0}},
                },
                "replicatedJobs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "template"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer", "minimum": 1},
                            "template": {"type": "object"},
                        },
                    },
                },
            },
        },
    },
}
"""The fields in use of JobSet v1alpha2 (jobset.sigs.k8s.io, API reference). Its templates are those of Kubernetes."""
SBATCH = {
    "job-name", "array", "ntasks-per-node", "gpus-per-node", "exclusive", "requeue", "open-mode", "time", "signal",
}  # fmt: skip
"""Options of sbatch (slurm.schedmd.com/sbatch.html) that are used."""


def example(name: str) -> dict[str, str]:
    """The variables in the command at the head of a file."""
    head = re.sub(r"\\\n#", "", (LAUNCH / name).read_text().split("\n#\n")[1])
    words = shlex.split(head.lstrip("# "))
    return dict(word.split("=", 1) for word in words if re.match(r"[A-Z]+=", word))


def devices(variables: dict[str, str]) -> int:
    """Devices of the example."""
    if "SLICES" in variables:
        return int(variables["SLICES"]) * int(variables["HOSTS"]) * int(variables["CHIPS"])
    return int(variables["TYPE"].rpartition("-")[2]) if "TYPE" in variables else 8 * 8


class Mesh:
    """The sizes of a mesh whose devices are not attached."""

    def __init__(self, sizes: tuple[int, ...], count: int) -> None:
        given = [size for size in sizes if size > 0]
        rest = count // math.prod(given)
        assert rest * math.prod(given) == count
        self.shape = dict(zip(("data", "fsdp", "tensor"), (s if s > 0 else rest for s in sizes), strict=True))


@pytest.mark.parametrize("name", ["jobset.yaml", "slurm.sh", "queued_resources.sh"])
def test_examples_have_valid_options_and_batches(name: str) -> None:
    variables = example(name)
    config, *options = shlex.split(variables["TRAINING"])
    run = load_config(config, [*options, "--hosts.join"])
    mesh: Any = Mesh(run.mesh, devices(variables))
    check_batch(run.data.batch_size, mesh)
    text = (LAUNCH / name).read_text()
    used = set(re.findall(r"\$\{?([A-Z]+)\b", text)) - {"STARTUP"}
    assert used == set(variables)


def test_the_jobset_is_valid() -> None:
    text = string.Template((LAUNCH / "jobset.yaml").read_text()).substitute(example("jobset.yaml"))
    jobset = yaml.safe_load(text)
    jsonschema.validate(jobset, JOBSET)
    for job in jobset["spec"]["replicatedJobs"]:
        template = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}} | job["template"]
        kubernetes_validate.validate(template, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            template | {"spec": template["spec"] | {"paralelism": 2}}, "1.33", strict=True
        )


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    directives = re.findall(r"^#SBATCH --([\w-]+)", path.read_text(), re.M)
    assert set(directives) <= SBATCH
    assert os.access(path, os.X_OK)


def test_hosts_of_cloud_tpu_get_a_complete_script(tmp_path: Path) -> None:
    """With a stand-in of gcloud that stores the start-up script."""
    command = tmp_path / "gcloud"
    command.write_text(
        '#!/bin/bash\nfor word; do case $word in startup-script=*) cp "${word#*=}" "$COPY";; esac; done\n'
        'echo "$@" > "$COPY.arguments"\n'
    )
    command.chmod(0o755)
    copy = tmp_path / "startup"
    variables = example("queued_resources.sh") | {"COPY": str(copy)}
    environment = os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([LAUNCH / "queued_resources.sh"], check=True, env=environment)
    subprocess.run(["bash", "-n", copy], check=True)
    script = copy.read_text()
    assert f"melody train {variables['TRAINING']} --hosts.join" in script
    assert "mount -t nfs 10.0.0.2:/data /data" in script
    assert "--accelerator-type v5litepod-256" in (tmp_path / "startup.arguments").read_text()
    del environment["SHARE"]
    assert (
        subprocess.run([LAUNCH / "queued_resources.sh"], env=environment, capture_output=True).returncode != 0
    )


def test_the_image_installs_what_the_package_offers() -> None:
    text = (LAUNCH / "Dockerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"EXTRA=(\w+)", text)) | set(re.findall(r"or (cuda\d+)", text))
    assert named == {"tpu", "cuda13", "cuda12"}
    assert named <= set(extras)
    assert "COPY . ." in text
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"constraints.txt", "configs", "melody_jax"} & set(ignored)
