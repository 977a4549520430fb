"""What no cluster would take, or would take and never run, is refused by its launcher before anything is asked for."""

import shutil

import pytest

from tests.tpu.scripts import COMMAND, GKE, JOB, VM, XPK, module_of, refused, shell


@pytest.mark.parametrize(("arguments", "said"), [
    (("vm.sh", *VM, "--name", "my tune", *COMMAND), "--name must be small letters, digits and -"),
    (("vm.sh", *VM, "--name", "a" * 64, *COMMAND), "at most 63 of them"),
    (("vm.sh", *VM, "--type", "v5litepod-0", *COMMAND), "as v5litepod-16; got 'v5litepod-0'"),
    (("vm.sh", *VM, "--bucket", "b; rm x", *COMMAND), "--bucket must be a bucket's name, without a path; got 'b; r"),
    (("vm.sh", *VM, "--share", "h", *COMMAND), "--share must be as HOST:/PATH; got 'h'"),
    (("vm.sh", *VM, "--share", "h:/p", "--bucket", "b", *COMMAND), "give one of them"),
    (("vm.sh", *VM, "--restarts", "x", *COMMAND), "--restarts must be a whole number of at least 0; got 'x'"),
    (("vm.sh", *VM, "--", "finetoon"), "the command after -- must be one of finetune plan"),
    (("vm.sh", "lunch", "--name", "n"), "the action must be launch, logs, stop, status or delete; got 'lunch'"),
    (("slurm.sh", "--nodes", 0, *COMMAND), "--nodes must be a whole number of at least 1; got '0'"),
    (("slurm.sh", "--gpus", -1, *COMMAND), "--gpus must be a whole number of at least 1; got '-1'"),
    (("slurm.sh", "--name", "a b", *COMMAND), "--name must be letters, digits"),
    (("slurm.sh", "--time", "a day", *COMMAND), "--time must be as 30 (minutes)"),
    (("slurm.sh", "--partition", "a b", *COMMAND), "--partition must be without blanks; got 'a b'"),
    (("slurm.sh", "--", "fine tune"), "got 'fine tune'"),
    (("xpk.sh", *XPK, "--name", "A", *COMMAND), "--name must be small letters"),
    (("xpk.sh", *XPK, "--slices", 0, *COMMAND), "--slices must be a whole number of at least 1; got '0'"),
    (("xpk.sh", *XPK, "--type", "v6e", *COMMAND), "--type must be a type of TPU"),
    (("supervise.sh", "--restarts", "x", "--", "true"), "--restarts must be a whole number of at least 0; got 'x'"),
    (("supervise.sh", "--wait", "", "--", "true"), "--wait must be a whole number of at least 0; got ''"),
    (("background.sh", "--name", "../x", "--", "true"), "--name must be small letters"),
])
def test_what_no_cluster_would_take_is_refused_before_anything_is_asked_of_it(arguments, said):
  assert said in refused(*arguments)


def test_an_absent_tool_is_named(tmp_path):
  for tool in ("bash", "dirname"):
    (tmp_path / tool).symlink_to(shutil.which(tool))
  for script, tool, arguments in (("vm.sh", "gcloud", VM), ("slurm.sh", "sbatch", ()), ("xpk.sh", "xpk", XPK)):
    said = shell(script, *arguments, *COMMAND, status=2, env={"PATH": str(tmp_path), "HOME": str(tmp_path)})
    assert said.startswith(f"{script}: {tool} is not on the PATH; ")


@pytest.mark.parametrize(("arguments", "said"), [
    ((*GKE, "--topology", "3x5"), "--topology of v5e must be one of 1x1, 2x2"),
    ((*GKE, "--topology", "axb"), "got 'axb'"),
    ((*GKE, "--topology", "0x4"), "got '0x4'"),
    ((*GKE, "--topology", "2x2x4"), "got '2x2x4'"),
    ((*GKE, "--chip", "v5p"), "--topology of v5p must be 2x2x1, 2x2x2"),
    ((*GKE, "--chip", "v5p", "--topology", "4x8x4"), "the smallest first"),
    ((*GKE, "--name", "my tune"), "--name must be small letters"),
    ((*GKE, "--name", "a" * 41), "at most 40 of them"),
    ((*GKE, "--image", ""), "--image must be an image's name"),
    ((*GKE, "--slices", 0), "--slices must be at least 1; got 0"),
    ((*GKE, "--restarts", -1), "--restarts must be at least 0; got -1"),
    ((*JOB, "--processes", 0), "--processes must be at least 1; got 0"),
    ((*JOB, "--gpus", -1), "--gpus must be at least 0; got -1"),
    ((*GKE[:-len(COMMAND)], "--", "finetoon"), "the command after -- must be one of"),
])
def test_a_manifest_that_no_cluster_would_schedule_is_not_made(arguments, said, capsys):
  manifest = module_of("manifest")
  at = arguments.index("--")
  end = at + len(COMMAND) if arguments[at:at + len(COMMAND)] == COMMAND else len(arguments)
  with pytest.raises(SystemExit) as stop:  # options stand before the command
    manifest.main([*map(str, arguments[:at]), *map(str, arguments[end:]), *map(str, arguments[at:end])])
  assert stop.value.code == 2 and said in capsys.readouterr().err


def test_topologies_of_gke():
  is_topology = module_of("manifest").is_topology
  for chip, shapes in {"v5e": ("1x1", "2x4", "16x16"), "v6e": ("4x8",),
                       "v5p": ("2x2x1", "2x4x4", "4x4x4", "4x4x8", "8x8x12")}.items():
    assert all(is_topology(chip, shape) for shape in shapes)
  assert not any(is_topology("v5p", shape) for shape in ("4x4", "2x2x3", "3x3x3", "8x4x4", "4x4x04"))


def test_kubectl_that_fails_or_is_absent_is_no_traceback(tmp_path, monkeypatch, capfd):
  manifest = module_of("manifest")
  apply = [*map(str, JOB[:-len(COMMAND)]), "--apply", *COMMAND]
  (tmp_path / "kubectl").write_text("#!/bin/sh\nexit 7\n")
  (tmp_path / "kubectl").chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path))
  assert manifest.main(apply) == 7
  monkeypatch.setenv("PATH", str(tmp_path / "none"))
  with pytest.raises(SystemExit):
    manifest.main(apply)
  assert "--apply needs kubectl on the PATH" in capfd.readouterr().err
