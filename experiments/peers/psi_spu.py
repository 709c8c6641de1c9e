"""SecretFlow's private set intersection (C++), csv to csv, two processes over loopback.

It lives in an environment of its own, for it needs numpy below 2 (about 1 GB):

    python3 -m venv spu && spu/bin/pip install spu==0.9.5
    spu/bin/python experiments/peers/psi_spu.py RR22 FOLDER

FOLDER holds a.csv and b.csv with a column `id`; both parties get the common rows in one order; RR22, KKRT or ECDH.
Prints one JSON object: seconds from before the link until both files are written, CPU seconds and peak memory of each
party without the import, rows found.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

PARTIES = ("a", "b")
SECONDS = 600


def main(protocol: str, folder: Path) -> dict[str, object]:
    """One run."""
    ports = [free_port() for _ in PARTIES]
    results: Any = multiprocessing.Queue()
    start = multiprocessing.Barrier(len(PARTIES) + 1)
    for rank in range(len(PARTIES)):
        multiprocessing.Process(target=party, args=(rank, ports, protocol, folder, start, results), daemon=True).start()
    start.wait(SECONDS)
    began = time.perf_counter()
    parties = dict(results.get(timeout=SECONDS) for _ in PARTIES)
    seconds = round(time.perf_counter() - began, 2)
    cpu = round(sum(one["cpu_seconds"] for one in parties.values()), 2)
    return {"peer": f"spu {protocol}", "seconds": seconds, "cpu_seconds": cpu, "parties": parties}


def party(rank: int, ports: list[int], protocol: str, folder: Path, start: Any, results: Any) -> None:
    """A party's process."""
    import spu.psi as psi
    from spu.libspu import link

    start.wait(SECONDS)
    began = usage()
    desc = link.Desc()
    desc.recv_timeout_ms = SECONDS * 1000
    for name, port in zip(PARTIES, ports, strict=True):
        desc.add_party(name, f"127.0.0.1:{port}")
    name, context = PARTIES[rank], link.create_brpc(desc, rank)
    settings = psi.PsiProtocolConfig(
        protocol=psi.parse_protocol(f"PROTOCOL_{protocol}"),
        receiver_rank=0,
        broadcast_result=True,
        ecdh_params=psi.EcdhParams(curve=psi.EllipticCurveType.CURVE_25519),
    )
    report = psi.psi_execute(
        psi.PsiExecuteConfig(
            protocol_conf=settings,
            input_params=psi.InputParams(path=str(folder / f"{name}.csv"), selected_keys=["id"], keys_unique=True),
            output_params=psi.OutputParams(path=str(folder / f"{name}.spu.csv")),
        ),
        context,
    )
    spent = usage() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    found = {"cpu_seconds": round(spent, 2), "peak_mib": memory, "rows": report.intersection_count}
    results.put((name, found))
    context.stop_link()


def usage() -> float:
    """CPU seconds of this process so far."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]).absolute())))
