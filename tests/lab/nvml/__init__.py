"""A stand-in for NVIDIA's library, built from `nvml.c`: the real pynvml in the real agent tells of pretended GPUs.

By hand: `cc -shared -fPIC -o FOLDER/libnvidia-ml.so.1 tests/lab/nvml/nvml.c -ldl`; then run what is to see the GPUs
with `LD_LIBRARY_PATH=FOLDER STANDIN_NVML=GPUS` (without the second, GPUS is FOLDER). GPUS is also what the switch
`gpus` of the simulator takes (docs/simulator.md, "Shared GPUs"), so that simulated servers hold what the agent sees
held. A host whose logins set no variables: the library in /usr/lib or wherever ldconfig looks, beside the file `gpus`,
and an empty /dev/nvidiactl.

GPUS/faults has one line for each thing that goes wrong; GPUs are named by index:

    compute_mode 0 prohibited       also exclusive_process, exclusive_thread
    ecc 0 3                         uncorrected errors; `ecc 0 unsupported`
    remapping 0 failed
    mig 0 on                        split, also without instances; `mig 0 unsupported`
    reserved 0 500000000            bytes that the driver keeps
    lost 1                          no handle: the GPU is lost; `unknown 1`: no handle, for no known reason
    falling 1                       a handle, but every question about it: the GPU is lost
    gone MIG-…                      a handle, but of nothing: an instance that was taken apart meanwhile
    memory 1 denied                 no permission to see that of the whole, as of a split GPU for all but root
    processes denied                no permission to see them; `processes hidden`: seen, not how much they hold
    graphics too                    they are in the list of graphics programs as well
    missing nvmlDeviceGetMigMode    a function that this driver does not have
    init mismatch                   'Driver/library version mismatch'; `init driver`: 'Driver Not Loaded'
"""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
NAME = "libnvidia-ml.so.1"


def build(folder: Path) -> Path:
    """Compile the library into a folder and return its path. `cc` is whatever C compiler the machine has."""
    library = folder / NAME
    warnings = ["-Wall", "-Wextra", "-Werror"]
    argv = ["cc", "-std=gnu11", "-O1", "-shared", "-fPIC", *warnings, "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return library
