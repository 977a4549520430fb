"""`vm.sh` and SLURM's job with stand-ins for what they call: slices taken away, lost connections, cancelled jobs."""

import os
import shutil
import signal as signals
import subprocess
import time

import pytest

from tests.tpu.scripts import COMMAND, SCRIPTS, TPU, VM, shell

CLOUD = """#!/usr/bin/env bash
# Stands for gcloud: states come from a file, a line a question, the last again and again; commands run here.
echo "$*" >>"$HOME/asked"
case "$*" in
  *describe*state.state*)
    now="$(head -n 1 "$HOME/states")"
    [ "$(wc -l <"$HOME/states")" -le 1 ] || sed -i 1d "$HOME/states"
    if [ "$now" = NONE ]; then echo "ERROR: NOT_FOUND: no such thing" >&2; exit 1; fi
    if [ "$now" = OFFLINE ]; then echo "ERROR: no route to host" >&2; exit 1; fi
    echo "$now" ;;
  *"tpu-vm ssh"*) for word; do case "$word" in --command=*) exec bash -c "${word#--command=}" ;; esac; done ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
  """A home folder with a `gcloud` that runs things there, and a `jaxft` that is a script."""
  home = tmp_path / "home"
  (home / "bin").mkdir(parents=True)
  (home / "jaxft-venv/bin").mkdir(parents=True)
  (home / "bin/gcloud").write_text(CLOUD)
  (home / "bin/tar").write_text("#!/bin/sh\nexit 0\n")
  (home / "jaxft/tpu").mkdir(parents=True)
  for script in SCRIPTS:
    shutil.copy(script, home / "jaxft/tpu")
  (home / "jaxft/tpu/setup.sh").write_text("#!/bin/sh\necho set up\n")
  for path in (home / "bin/gcloud", home / "bin/tar"):
    path.chmod(0o755)
  def launch(states, program, *more, status=0):
    (home / "states").write_text("\n".join(states) + "\n")
    (home / "jaxft-venv/bin/jaxft").write_text(program)
    (home / "jaxft-venv/bin/jaxft").chmod(0o755)
    env = {**os.environ, "HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}", "VM_SH_WAIT": "0"}
    return shell("vm.sh", *VM, *more, *COMMAND, status=status, env=env)
  launch.home = home
  return launch


def test_a_slice_taken_away_is_asked_for_again_and_one_that_failed_is_not(cloud):
  asked = lambda: (cloud.home / "asked").read_text()
  said = cloud(["FAILED"], "", status=1)
  assert "the queued resource is FAILED" in said and "create" not in asked() and "delete" not in asked()
  # Taken away while it waits, then there, with words that the connection failed between: a second one is asked for.
  said = cloud(["NONE", "WAITING_FOR_RESOURCES", "OFFLINE", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE"],
               '#!/bin/sh\necho "trained $5"\n')
  assert "\ntrained /mnt/run\n" in said and "no route to host" in said
  assert asked().count("queued-resources create") == 2 and asked().count("queued-resources delete") == 1
  # What cannot be known is not taken for a slice that is gone.
  (cloud.home / "asked").unlink()
  assert "cannot be read: ERROR: no route to host" in cloud(["OFFLINE"], "", status=1)
  assert "create" not in asked() and "delete" not in asked()


def test_a_run_outlives_the_connection_and_the_same_launch_follows_it(cloud):
  home = cloud.home
  wait = f'#!/bin/sh\necho begun\nwhile [ ! -e {home}/go ]; do sleep 0.1; done\necho done; exit 3\n'
  (home / "states").write_text("ACTIVE\n")
  (home / "jaxft-venv/bin/jaxft").write_text(wait)
  (home / "jaxft-venv/bin/jaxft").chmod(0o755)
  env = {**os.environ, "HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}", "VM_SH_WAIT": "0"}
  first = subprocess.Popen(["bash", TPU / "vm.sh", *VM, *COMMAND], env=env, text=True, stdout=subprocess.PIPE,
                           start_new_session=True)
  for line in first.stdout:
    if line == "begun\n":
      break
  os.killpg(first.pid, 9)  # the connection and all that hung on it
  first.communicate()
  running = ["bash", home / "jaxft/tpu/background.sh", "--name", "jaxft", "--running"]
  assert subprocess.run(running, env=env).returncode == 0
  (home / "go").touch()
  said = cloud(["ACTIVE"], wait, status=3)  # follows, or, where it was faster, starts what ends at once: with 3 too
  assert "\ndone\n" in said and subprocess.run(running, env=env).returncode == 1
  assert (home / "jaxft.status").read_text() == "3\n"


@pytest.mark.parametrize(("signal", "back"), [("USR1", True), ("TERM", False)])
def test_a_slurm_job_goes_back_into_the_queue_at_its_time_limit_and_not_where_it_was_cancelled(tmp_path, signal, back):
  def program(name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)

  # A run that saves at SIGTERM, which the stand-ins for SLURM's own programs hand on and write down.
  program("venv/bin/jaxft", f"trap 'echo saved; exit 75' TERM; touch {tmp_path}/begun; "
          "for i in {1..300}; do sleep 0.1; done")
  program("bin/srun", f'shift; "$@" & echo $! >{tmp_path}/task; wait $!')
  program("bin/scancel", f'echo "$@" >>{tmp_path}/asked; kill -TERM "$(cat {tmp_path}/task)"')
  program("bin/scontrol", f'echo "$@" >>{tmp_path}/asked')
  job = shell("slurm.sh", "--dry-run", "--venv", tmp_path / "venv", *COMMAND).partition("\n")[2]
  env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
  running = subprocess.Popen(["bash", "-c", job], env=env, text=True, stdout=subprocess.PIPE)
  while not (tmp_path / "begun").exists() and running.poll() is None:
    time.sleep(0.05)
  running.send_signal(getattr(signals, f"SIG{signal}"))
  said, _ = running.communicate(timeout=60)
  assert running.returncode == 75 and "saved" in said
  asked = (tmp_path / "asked").read_text().splitlines()
  assert asked == ["--signal=TERM 7.0"] + ["requeue 7"] * back
