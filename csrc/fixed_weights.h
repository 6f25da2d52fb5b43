// Within the life of a FixedWeights no gradients are recorded: weights are expected to be seen
// again unchanged, and kernels of this thread may keep packed copies (cpu/packed_weights.h).
#pragma once

namespace detnas {

class FixedWeights {
 public:
  FixedWeights() : previous_(flag()) { flag() = true; }
  ~FixedWeights() { flag() = previous_; }
  FixedWeights(const FixedWeights&) = delete;
  static bool& flag() {
    static thread_local bool fixed = false;
    return fixed;
  }

 private:
  bool previous_;
};

}  // namespace detnas
