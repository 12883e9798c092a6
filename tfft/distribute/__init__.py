"""Devices and workers: `tf.distribute` strategies, and a launcher for several processes."""
