"""Two processes under jax.distributed read the batches that one process reads, into one global array."""

import json
import socket
import subprocess
import sys
import textwrap

import numpy as np

from jaxft import data

PROGRAM = textwrap.dedent("""
  import json, sys
  import jax
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
  import grain
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec
  from jaxft import data

  mesh = jax.make_mesh((4,), ("data",))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  shard = grain.sharding.ShardOptions(jax.process_index(), jax.process_count())
  assert (shard.shard_index, shard.shard_count) == (int(sys.argv[2]), 2)
  batches = data.batches([{"x": np.float32([i, -i])} for i in range(21)], batch_size=8, seed=5, shard=shard)
  replicate = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
  out = []
  for step in range(4):
    batch = data.to_global(batches[step], sharding)
    assert batch["x"].shape == (8, 2) and len(batch["x"].addressable_shards) == 2
    out.append(np.asarray(replicate(batch["x"]).addressable_data(0)).tolist())
  print("RESULT", json.dumps(out), "tensorflow" in sys.modules)
""")


def test_global_arrays_equal_the_one_process_batches():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, address, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for i in range(2)
  ]
  try:
    results = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  batches = data.batches([{"x": np.float32([i, -i])} for i in range(21)], batch_size=8, seed=5)
  expected = [batches[step]["x"].tolist() for step in range(4)]
  for out, errors in results:
    assert "RESULT" in out, errors[-2000:]
    result, tensorflow = out.split("RESULT ")[1].rsplit(maxsplit=1)
    assert json.loads(result) == expected
    assert tensorflow == "False"
