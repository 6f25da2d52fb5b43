"""DetNAS: ShuffleNetV2 supernets and the networks of their paths."""
