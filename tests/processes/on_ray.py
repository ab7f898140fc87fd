"""What test_ray_cluster.py has Ray do, in a process of its own: python on_ray.py <folder>.

A cluster of two nodes, which are processes; six runs; the second node is killed while it trains one of them.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import models
import utils
from attacks import PGD
from defences import Adversarial
from storage.atomic_files import read_json
from trainer import Recipe
from training.run_folder import RunFolder


def asked_for(data):
    """Three starts, and what is trained from each."""
    common, asked = {"precision": "float32", "validation_images": 16, "batch_size": 64}, {}
    for seed in range(3):
        model = models.build("shallow_cnn", 10, seed=seed)
        asked["standard", seed] = model, data, Recipe(epochs=10, seed=seed, **common)
        recipe = Recipe(epochs=5, seed=seed, defence=Adversarial(PGD(steps=2)), **common)
        asked["pgd", seed] = ("standard", seed), data, recipe
    return asked


def main(folder):
    # Ray reads these when it is imported; with the first it stays on the loopback.
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"RAY_TMPDIR": str(folder), "STUDY_RUNS": str(folder / "runs")}
    (folder / "ray").mkdir()
    import ray
    from ray.cluster_utils import Cluster

    from study import many_runs

    alive = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
    alive |= {"health_check_timeout_ms": 500, "health_check_failure_threshold": 2}
    node = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "num_cpus": 1}
    node |= {"object_store_memory": 200 * 1024**2}
    nodes = Cluster()
    nodes.add_node(_system_config=alive, **node)
    second = nodes.add_node(**node)
    session = utils.start("ray", preset="smoke")
    lost = {}
    threading.Thread(target=kill, args=(second, session, lost), daemon=True).start()
    many_runs.train_all(
        asked_for(utils.load_data("shapes10", session)), session, on=f"ray:{nodes.address}", progress=False
    )
    (folder / "lost.json").write_text(json.dumps(lost))
    ray.shutdown()
    nodes.shutdown()


def kill(node, session, lost):
    """As soon as a run there has a checkpoint."""
    while not lost:
        for note in (session.runs.parent / ".jobs" / session.experiment).glob("*.json"):
            run = RunFolder(session.runs / note.stem)
            there = f"node {node.node_id[:6]}" in read_json(note)["where"]
            if there and not run.finished and any(path.exists() for path in run.checkpoints):
                raylet = node.all_processes["raylet"][0].process
                raylet.kill()
                raylet.wait()  # else it would count as alive
                lost |= {"run": note.stem, "epoch": len(run.load_history())}
                break
        time.sleep(0.02)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
