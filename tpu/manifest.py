"""A run on Kubernetes: a JobSet of TPU slices on GKE, or an Indexed Job anywhere, as manifests for `kubectl apply`.

    python tpu/manifest.py gke --name tune --image IMAGE --chip v5e --topology 4x4 --bucket B -- finetune --model ...
    python tpu/manifest.py job --name tune --image IMAGE --processes 4 --gpus 1 --claim C -- finetune --model ...

It prints the manifests, which is the dry run, and with --apply gives them to kubectl. A run that exits with 75 (stopped
with everything saved, or one of its processes lost) is started again; an error, 1, 2 or 3, fails it for good. The
bucket or the claim is mounted at /mnt in all pods: --out and the data belong there.
"""

import argparse
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

RESTART = 75  # of jaxft.processes; this script runs where jaxft need not be installed
ERRORS = (1, 2, 3)
PORT = 8476
CHIPS = {  # GKE's name of the accelerator, chips a host in slices of several hosts, and sides of a slice
    "v5e": ("tpu-v5-lite-podslice", 4, 2), "v5p": ("tpu-v5p-slice", 4, 3), "v6e": ("tpu-v6e-slice", 4, 2),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # all that v5e and v6e have
LABEL = "small letters, digits and -, the first a letter, the last no -, at most 40 of them"  # a pod's name is longer
COMMANDS = ("finetune", "plan", "evaluate", "generate", "run", "list", "cite", "formats", "fetch", "merge",
            "completion", "convert")
GRACE = 120  # seconds between SIGTERM and SIGKILL: time to finish a step and to save it
Manifest = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  kinds = parser.add_subparsers(dest="kind", required=True)
  gke, job = kinds.add_parser("gke"), kinds.add_parser("job")
  for kind in (gke, job):
    kind.add_argument("--name", required=True)
    kind.add_argument("--image", required=True, help="of tpu/Dockerfile")
    kind.add_argument("--restarts", type=int, default=20)
    kind.add_argument("--apply", action="store_true", help="give the manifests to kubectl; else print them")
    where = kind.add_mutually_exclusive_group()
    where.add_argument("--bucket", help="of Cloud Storage, mounted by GKE's FUSE driver")
    where.add_argument("--claim", help="a PersistentVolumeClaim that many pods may write")
    kind.add_argument("command", nargs="+", help="of jaxft, after --")
  gke.add_argument("--chip", choices=CHIPS, required=True)
  gke.add_argument("--topology", required=True, help="of one slice, such as 4x4 or 2x2x4")
  gke.add_argument("--slices", type=int, default=1)
  gke.add_argument("--spot", action="store_true")
  gke.add_argument("--service-account", help="of Kubernetes, with access to the bucket")
  job.add_argument("--processes", type=int, required=True)
  job.add_argument("--gpus", type=int, default=0, help="of each process")
  options = parser.parse_args(arguments)
  if wrong := mistake(options):
    parser.error(wrong)
  manifests = gke_manifests(options) if options.kind == "gke" else job_manifests(options)
  text = yaml.safe_dump_all(manifests, sort_keys=False)
  if not options.apply:
    print(text, end="")
    return 0
  if shutil.which("kubectl") is None:
    parser.error("--apply needs kubectl on the PATH; without it the manifests are printed")
  return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True).returncode


def mistake(options: argparse.Namespace) -> str | None:
  """What no cluster would take, or would take and never schedule."""
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
    return f"--name must be {LABEL}; got {options.name!r}"
  if not re.fullmatch(r"\S+", options.image):
    return f"--image must be an image's name, without blanks; got {options.image!r}"
  if options.command[0] not in COMMANDS:
    return f"the command after -- must be one of {' '.join(COMMANDS)}; got {options.command[0]!r}"
  for name, least in {"restarts": 0, "slices": 1, "processes": 1, "gpus": 0}.items():
    if (given := getattr(options, name, least)) < least:
      return f"--{name} must be at least {least}; got {given}"
  if options.kind == "gke" and not is_topology(options.chip, options.topology):
    shapes = "one of " + ", ".join(FLAT) if CHIPS[options.chip][2] == 2 else (
        "2x2x1, 2x2x2, 2x2x4, 2x4x4 or three sides that 4 divides, the smallest first, such as 4x4x8")
    return f"--topology of {options.chip} must be {shapes}; got {options.topology!r}"
  return None


def is_topology(chip: str, topology: str) -> bool:
  """Whether GKE has slices of this shape."""
  if CHIPS[chip][2] == 2:
    return topology in FLAT
  if topology in ("2x2x1", "2x2x2", "2x2x4", "2x4x4"):
    return True
  sides = [int(n) for n in topology.split("x")] if re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){2}", topology) else []
  return len(sides) == 3 and all(n % 4 == 0 for n in sides) and sides == sorted(sides)


def gke_manifests(options: argparse.Namespace) -> list[Manifest]:
  """A JobSet with one Job a slice; GKE tells each pod its number and the hosts, which JAX reads."""
  accelerator, per_host, _ = CHIPS[options.chip]
  chips = math.prod(int(n) for n in options.topology.split("x"))
  hosts = max(1, chips // per_host)
  pod = _pod(options, {"google.com/tpu": min(chips, per_host)})
  pod["spec"]["nodeSelector"] = {
      "cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": options.topology}
  if options.spot:
    pod["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    pod["spec"]["tolerations"] = [
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
  if options.service_account:
    pod["spec"]["serviceAccountName"] = options.service_account
  # A slice ends as a whole, so its Job has no retries of its own: the JobSet starts all slices again.
  job = {"parallelism": hosts, "completions": hosts, "completionMode": "Indexed", "backoffLimit": 0,
         "podFailurePolicy": {"rules": [_errors_fail()]}, "template": pod}
  return [{
      "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
      "metadata": {
          "name": options.name,
          "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}},
      "spec": {
          "failurePolicy": {
              "maxRestarts": options.restarts,
              "rules": [{"name": "errors", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]},
          "replicatedJobs": [{"name": "slice", "replicas": options.slices, "template": {"spec": job}}]},
  }]


def job_manifests(options: argparse.Namespace) -> list[Manifest]:
  """An Indexed Job whose pods find process 0 by a headless Service, and that Service."""
  pod = _pod(options, {"nvidia.com/gpu": options.gpus} if options.gpus else {})
  pod["spec"]["subdomain"] = options.name
  number = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
  pod["spec"]["containers"][0]["env"] = [
      {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{options.name}-0.{options.name}:{PORT}"},
      {"name": "JAX_NUM_PROCESSES", "value": str(options.processes)},
      {"name": "JAX_PROCESS_ID", "valueFrom": number}]
  again = {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [RESTART]}}
  evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
  service = {
      "apiVersion": "v1", "kind": "Service", "metadata": {"name": options.name},
      "spec": {"clusterIP": "None", "publishNotReadyAddresses": True,
               "selector": {"batch.kubernetes.io/job-name": options.name}}}
  job = {
      "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": options.name},
      "spec": {"parallelism": options.processes, "completions": options.processes, "completionMode": "Indexed",
               "backoffLimit": options.restarts,
               "podFailurePolicy": {"rules": [_errors_fail(), again, evicted]}, "template": pod}}
  return [service, job]


def _errors_fail() -> Manifest:
  return {"action": "FailJob", "onExitCodes": {"operator": "In", "values": list(ERRORS)}}


def _pod(options: argparse.Namespace, accelerators: dict[str, int]) -> Manifest:
  container: Manifest = {"name": "jaxft", "image": options.image, "args": options.command}
  if accelerators:
    container["resources"] = {"limits": accelerators}
  spec: Manifest = {"restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE, "containers": [container]}
  pod: Manifest = {"spec": spec}
  if options.bucket or options.claim:
    container["volumeMounts"] = [{"name": "shared", "mountPath": "/mnt"}]
  if options.bucket:
    pod["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    attributes = {"bucketName": options.bucket.removeprefix("gs://"),
                  "mountOptions": "implicit-dirs,rename-dir-limit=100000"}
    spec["volumes"] = [
        {"name": "shared", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}]
  elif options.claim:
    spec["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": options.claim}}]
  return pod


if __name__ == "__main__":
  raise SystemExit(main())
