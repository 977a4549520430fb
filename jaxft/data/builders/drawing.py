"""Drawings from SVG to PNG, by resvg in Node: the same pixels on every machine, as no font of it is used."""

import base64
import contextlib
import json
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from jaxft.fetch import NotAvailable, fetch_npm_package

Package = tuple[str, str, str]  # name, version, SHA-256

_RESVG: Package = ("@resvg/resvg-js", "2.6.2", "5b4c67c32d593a42bca6d97320b57465cf340bee441f4cb6bf250b1086872a43")
_BINARIES: Mapping[tuple[str, str], tuple[str, str]] = {
  ("Linux", "x86_64"): ("linux-x64-gnu", "ead221101ab0c8f27821c6ad4e65259ff6796d49978831b2992abb0ecdbaf96a"),
  ("Linux", "aarch64"): ("linux-arm64-gnu", "4f666017abc3ea74ea3e8fe32ed38fa2b7c2fd7a61f64fa1032728da43ab0054"),
  ("Darwin", "x86_64"): ("darwin-x64", "92e243f9f57c6e6dcdf02899a8349a4a8fded9354434c15c5b274038c924b5ec"),
  ("Darwin", "arm64"): ("darwin-arm64", "15b46d346a220a38592423a986e8c5d10b740aa5cf6cf4755585738b4538daa8"),
}

# One line in, one line out: an SVG and the side of the square that holds it; the PNG in base64, empty where resvg
# refuses the SVG.
_DRAW = """
import readline from "node:readline";
import { Resvg } from "@resvg/resvg-js";
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { svg, size } = JSON.parse(line);
  let png = "";
  try {
    const probe = new Resvg(svg);
    const mode = probe.width >= probe.height ? "width" : "height";
    const drawn = new Resvg(svg, { fitTo: { mode, value: size }, font: { loadSystemFonts: false } });
    png = drawn.render().asPng().toString("base64");
  } catch (error) {}
  process.stdout.write(png + "\\n");
}
"""


@contextlib.contextmanager
def node_folder(*packages: Package) -> Iterator[Path]:
  """A folder in which Node finds these packages, for as long as the context is open.

  Raises:
    NotAvailable: there is no Node, or a package cannot be fetched.
  """
  if shutil.which("node") is None:
    raise NotAvailable("drawing needs Node, and there is no node on this machine")
  with tempfile.TemporaryDirectory(prefix="jaxft-node-") as folder:
    for name, version, sha256 in packages:
      to = Path(folder) / "node_modules" / name
      with tarfile.open(fetch_npm_package(name, version, sha256=sha256)) as archive:
        members = [m for m in archive.getmembers() if m.isfile() and m.name.startswith("package/")]
        for member in members:
          member.name = member.name.removeprefix("package/")
        archive.extractall(to, members, filter="data")
    yield Path(folder)


def resvg_packages() -> tuple[Package, Package]:
  """resvg, and its binary for this machine.

  Raises:
    NotAvailable: none is known for this machine.
  """
  machine = platform.system(), platform.machine()
  if machine not in _BINARIES:
    raise NotAvailable(f"drawing needs @resvg/resvg-js, of which no binary is known for {' '.join(machine)}")
  kind, sha256 = _BINARIES[machine]
  return _RESVG, (f"{_RESVG[0]}-{kind}", _RESVG[1], sha256)


def draw(svgs: Iterable[str], size: int) -> Iterator[bytes | None]:
  """Each SVG as a PNG whose longer side has `size` pixels; None for one that resvg refuses.

  Raises:
    OSError: there is no Node, no resvg for this machine, a package cannot be fetched, or Node gave up.
  """
  with node_folder(*resvg_packages()) as folder:
    requests = (json.dumps({"svg": svg, "size": size}) for svg in svgs)
    for line in run_node(_DRAW, requests, folder):
      yield base64.b64decode(line) or None


def run_node(program: str, lines: Iterable[str], folder: Path) -> Iterator[str]:
  """What a program in JavaScript answers to each line, one line for one, in the order of the lines.

  Raises:
    OSError: it ended before the last of them.
  """
  command = ["node", "--input-type=module", "--eval", program]
  with subprocess.Popen(
      command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
    assert process.stdin is not None and process.stdout is not None
    try:
      for line in lines:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        if not (answer := process.stdout.readline()):
          raise OSError("node ended before it had answered every line")
        yield answer.rstrip("\n")
    finally:
      with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
      process.kill()
