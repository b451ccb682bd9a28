"""A Ray cluster on this machine, one of whose nodes is killed while it works."""

import contextlib
from collections.abc import Iterator

import pytest


class Cluster:
    """A head without cores, and two nodes.

    Attributes:
      address: for who wants to join.
      nodes: those that are alive.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address = self._cluster.address
        self.nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill_one_at_work(self) -> None:
        """Kills a node that segments."""
        # What is public of this needs the dashboard, which is not in the extra.
        from ray._private.state import actors

        at_work = {
            actor["Address"]["NodeID"]
            for actor in actors(actor_state_name="ALIVE").values()
            if actor["ActorClassName"].startswith("MapWorker")
        }
        victim = next(node for node in self.nodes if node.node_id in at_work)
        self.nodes.remove(victim)
        self._cluster.remove_node(victim, allow_graceful=False)

    def shutdown(self) -> None:
        """Ends all of it."""
        self._cluster.shutdown()


@contextlib.contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """Starts a cluster, which this process joins; skips the test where Ray is not installed."""
    ray = pytest.importorskip("ray", reason='needs pip install "segmenter_jax[ray]"')
    cluster = Cluster()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
