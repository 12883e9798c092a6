"""The model of TF Serving's own tests, and a server for it in this process."""

import asyncio
import contextlib
import threading

import grpc
import tensorflow as tf

from tfft.serve import grpc_service, warmup
from tfft.serve.batching import Batcher
from tfft.serve.http import Limits, Rest
from tfft.serve.versions import VersionManager

NAME = "half_plus_two"
CONFIG = """model_config_list {{ config {{
  name: "half_plus_two" base_path: "/models" model_platform: "tensorflow"
  model_version_policy {{ {policy} }}
  version_labels {{ key: "label" value: 123 }}
}} }}
"""


class HalfPlusTwo(tf.Module):
    """y = x / 2 + 2 and y3 = x / 2 + 3, with the signatures of TF Serving's test models."""

    def __init__(self):
        self.half, self.two, self.three = (tf.Variable(v) for v in (0.5, 2.0, 3.0))
        self.count = tf.Variable(0.0)

    def parse(self, serialized):
        features = {"x": tf.io.FixedLenFeature([1], tf.float32)}
        return self.half * tf.io.parse_example(serialized, features)["x"]

    def signatures(self):
        number, text = ([None, 1], tf.float32), ([None], tf.string)
        table = {
            "serving_default": (lambda x: {"y": self.half * x + self.two}, {"x": number}),
            "regress_x_to_y": (lambda x: {"outputs": self.parse(x) + self.two}, {"inputs": text}),
            "regress_x_to_y2": (
                lambda x: {"outputs": self.parse(x) + self.three},
                {"inputs": text},
            ),
            "classify_x_to_y": (lambda x: {"scores": self.parse(x) + self.two}, {"inputs": text}),
            "regress_x2_to_y3": (
                lambda x: {"outputs": self.half * x + self.three},
                {"inputs": number},
            ),
            "classify_x2_to_y3": (
                lambda x: {"scores": self.half * x + self.three},
                {"inputs": number},
            ),
            "sums": (
                lambda x, y: {"sum": x + y, "total": tf.reduce_sum(x)},
                {"x": number, "y": number},
            ),
            "joined": (lambda x: {"joined": tf.strings.reduce_join(x)}, {"x": text}),
            "half": (lambda x: {"half": tf.cast(x, tf.float16)}, {"x": number}),
            "incr_counter": (lambda: {"output": self.count.assign_add(1.0)}, {}),
            "reset_counter": (lambda: {"output": self.count.assign(0.0)}, {}),
        }
        return {
            name: tf.function(
                function,
                input_signature=[tf.TensorSpec(*spec, name) for name, spec in inputs.items()],
                autograph=False,
            )
            for name, (function, inputs) in table.items()
        }


def save(folder):
    model = HalfPlusTwo()
    tf.saved_model.save(model, str(folder), signatures=model.signatures())


@contextlib.contextmanager
def serving(base, name=NAME, max_bytes=8 << 20):
    """Serve a folder in this process; yield the REST address, a gRPC channel and the versions."""
    versions, batcher = VersionManager(name, base, warmup.replay), Batcher()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    rest = Rest(versions, batcher, Limits(max_bytes, 30.0))
    port = call(rest.start("127.0.0.1", 0))
    server, grpc_port = grpc_service.start(versions, batcher, "127.0.0.1:0", max_bytes, 30.0)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            yield f"http://127.0.0.1:{port}", channel, versions
    finally:
        server.stop(0)
        call(rest.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        versions.close()
        batcher.close()
