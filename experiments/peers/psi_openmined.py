"""OpenMined's private set intersection (C++, ECDH), which NVFlare uses: both sides in one process, no network.

It lives in an environment of its own, for it pins protobuf:

    python3 -m venv openmined && openmined/bin/pip install openmined-psi==2.0.6
    openmined/bin/python experiments/peers/psi_openmined.py FOLDER

FOLDER holds a.csv and b.csv with a column `id`; the client, a, learns the intersection.  Prints one JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import private_set_intersection.python as psi

FALSE_POSITIVES = 1e-9


def main(folder: Path) -> dict[str, object]:
    """One run."""
    ours, theirs = ((folder / f"{name}.csv").read_text(encoding="ascii").split()[1:] for name in "ab")
    began, cpu = time.perf_counter(), time.process_time()
    client, server = psi.client.CreateWithNewKey(True), psi.server.CreateWithNewKey(True)
    setup = server.CreateSetupMessage(FALSE_POSITIVES, len(ours), theirs, psi.DataStructure.RAW)
    request = client.CreateRequest(ours)
    response = server.ProcessRequest(request)
    rows = client.GetIntersection(setup, response)
    size = sum(message.ByteSize() for message in (setup, request, response))
    return {
        "peer": "openmined-psi",
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "megabytes": round(size / 1e6, 1),
        "rows": len(rows),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
