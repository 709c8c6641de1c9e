"""What encrypted aggregation costs, in one process: seconds, bytes and error for each profile and the peer's.

The peer's setting is what NVFlare ships: TenSEAL `ckks_vector`, public-key, N=8192 [60, 40, 40], scale 2^40,
serialised; its input is given as the list TenSEAL wants, outside of the timing.  Same process, same vectors,
minimum of some repeats.  Run: ``python -m experiments.bench_aggregation``
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fl_core.crypto import seal_io
from fl_core.crypto.aggregation import make_aggregator, make_key
from fl_core.crypto.ciphers import open_cipher
from fl_core.crypto.profiles import CKKS_2048, profile_names

PEER = "peer (ckks_vector 8192)"
TARGETS = {  # CKKS_2048: bytes a parameter, error, ratios to the peer
    "up": 7.7, "down": 15.2, "error": 1e-7, "encrypt_ratio": 0.3, "decrypt_ratio": 0.45,
}  # fmt: skip


def best(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least seconds over `repeats` calls, and the last result."""
    seconds, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds, result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TenSEAL's C++ writes a warning to standard output for every long vector."""
    sys.stdout.flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def bench_profile(name: str, vectors: np.ndarray, repeats: int) -> dict[str, float]:
    """One row of the table for a profile."""
    clients, length = vectors.shape
    tail, clip = np.ones(4), float(np.abs(vectors).max())
    key = make_key(name, parties=clients)
    aggregator = make_aggregator(name, parties=clients, length=length, tail=4, key_id=key.key_id, clip=clip)
    encrypt, blob = best(lambda: key.encrypt(vectors[0], tail, clip=clip), repeats)
    start = time.perf_counter()
    aggregator.absorb(blob)
    absorb = time.perf_counter() - start
    for vector in vectors[1:]:
        aggregator.absorb(key.encrypt(vector, tail, clip=clip))
    result_s, result = best(aggregator.result, repeats)
    decrypt, (total, _) = best(lambda: key.decrypt(result, count=clients, clip=clip), repeats)
    error = float(np.abs(total - vectors.sum(axis=0)).max())
    return {
        "encrypt_s": encrypt, "absorb_s": absorb, "result_s": result_s, "decrypt_s": decrypt,
        "up": len(blob) / length, "down": len(result) / length, "error": error,
    }  # fmt: skip


def bench_peer(vectors: np.ndarray, repeats: int) -> dict[str, float]:
    """The same for the peer's setting."""
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40])
    context.global_scale = 2.0**40
    length = vectors.shape[1]
    numbers = vectors[0].tolist()
    encrypt, blob = best(lambda: tenseal.ckks_vector(context, numbers).serialize(), repeats)
    absorb, total = best(lambda: tenseal.ckks_vector_from(context, blob), 1)
    for vector in vectors[1:]:
        total += tenseal.ckks_vector_from(context, tenseal.ckks_vector(context, vector).serialize())
    result_s, result = best(total.serialize, repeats)
    decrypt, sums = best(lambda: tenseal.ckks_vector_from(context, result).decrypt(), repeats)
    error = float(np.abs(np.array(sums) - vectors.sum(axis=0)).max())
    return {
        "encrypt_s": encrypt, "absorb_s": absorb, "result_s": result_s, "decrypt_s": decrypt,
        "up": len(blob) / length, "down": len(result) / length, "error": error,
    }  # fmt: skip


def bench_stages(repeats: int = 200) -> dict[str, float]:
    """Microseconds a block of each stage of CKKS_2048, least of `repeats`: where the time goes."""
    cipher: Any = open_cipher(CKKS_2048, 8)  # looks inside: Any
    seal = cipher.seal
    key: Any = cipher.open_secret(cipher.new_secret())
    row = np.random.default_rng(0).normal(0, 0.01, cipher.width)
    plaintext = cipher.to_plaintext(row)
    fresh = key._encryptor.encrypt_symmetric(plaintext)
    upload = seal_io.save(fresh)
    parsed = cipher.parse(upload, upload=True)
    down = cipher.dump(parsed)
    stages: dict[str, Callable[[], Any]] = {
        "encode": lambda: cipher.to_plaintext(row),
        "encrypt": lambda: key._encryptor.encrypt_symmetric(plaintext),
        "save (zstd)": lambda: seal_io.save(fresh),
        "check upload (inflate)": lambda: cipher.upload_form.check(upload),
        "parse upload": lambda: cipher.parse(upload, upload=True),
        "add": lambda: cipher.add(parsed, parsed),
        "dump sum (zstd)": lambda: cipher.dump(parsed),
        "parse sum": lambda: cipher.parse(down, upload=False),
        "decrypt and decode": lambda: key.decrypt(parsed),
        "decrypt": lambda: key._decryptor.decrypt(parsed, seal.Plaintext()),
    }
    return {name: 1e6 * best(work, repeats)[0] for name, work in stages.items()}


def run(*, parameters: int = 1_000_000, clients: int = 8, repeats: int = 3) -> dict[str, Any]:
    """All rows, the ratios of CKKS_2048 to the peer, the targets and whether each is met."""
    vectors = np.random.default_rng(1).normal(0, 0.01, (clients, parameters))
    with quiet():
        rows = {PEER: bench_peer(vectors, repeats)}
    rows |= {name: bench_profile(name, vectors, repeats) for name in profile_names()}
    peer = rows[PEER]
    for row in rows.values():
        row["encrypt_ratio"] = row["encrypt_s"] / peer["encrypt_s"]
        row["decrypt_ratio"] = row["decrypt_s"] / peer["decrypt_s"]
    ours = rows["CKKS_2048"]
    met = {name: ours[name] <= limit for name, limit in TARGETS.items()}
    return {
        "parameters": parameters, "clients": clients, "rows": rows,
        "stages_us": bench_stages(), "targets": TARGETS, "met": met,
    }  # fmt: skip


def main() -> int:
    """Print the table; 1 if a target is missed."""
    report = run()
    if "--json" in sys.argv:
        print(json.dumps(report, indent=1))
        return 0 if all(report["met"].values()) else 1
    print(f"{report['parameters']:,} parameters, sum of {report['clients']}; seconds, bytes a parameter\n")
    head = next(iter(report["rows"].values())).keys()
    print(f"{'':24}" + "".join(f"{name:>14}" for name in head))
    for name, row in report["rows"].items():
        print(f"{name:24}" + "".join(f"{row[key]:>14.3g}" for key in head))
    print("\nCKKS_2048, microseconds a block of 2,047 values")
    for name, micros in report["stages_us"].items():
        print(f"  {name:24}{micros:8.1f}")
    for name, limit in report["targets"].items():
        print(f"target {name} ≤ {limit:g}: {'met' if report['met'][name] else 'MISSED'}")
    return 0 if all(report["met"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
