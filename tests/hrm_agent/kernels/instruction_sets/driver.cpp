// Calls one function of the stack kernels in a process of its own: for kernels of another processor, under an emulator.
//
//   driver FUNCTION < call > results
//
// A call: the twelve integers of Stack (int64), epsilon (float), then arrays, each an int64 count of floats and the
// floats: cos, sin (0 floats where there are none), the weights of all layers after their number (int64), and the
// function's own inputs. Results are arrays likewise.

#include <cstdio>
#include <cstring>
#include <vector>

#include "stack.cpp"

namespace {

using Floats = std::vector<float>;

void take(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(3);
}

Floats array() {
  i64 count;
  take(&count, sizeof(count));
  Floats found(count);
  take(found.data(), count * sizeof(float));
  return found;
}

void give(const Floats& found) {
  i64 count = found.size();
  std::fwrite(&count, sizeof(count), 1, stdout);
  std::fwrite(found.data(), sizeof(float), count, stdout);
}

}  // namespace

int main(int, char** argv) {
  Stack s{};
  take(&s, 12 * sizeof(i64));
  take(&s.epsilon, sizeof(float));
  Floats cos = array(), sin = array();
  s.cos = cos.empty() ? nullptr : cos.data();
  s.sin = sin.empty() ? nullptr : sin.data();
  i64 count;
  take(&count, sizeof(count));
  std::vector<Floats> weights(count), gradients;
  std::vector<const float*> at;
  std::vector<float*> gradients_at;
  for (Floats& weight : weights) {
    weight = array();
    at.push_back(weight.data());
    gradients.emplace_back(weight.size());
  }
  for (Floats& gradient : gradients) gradients_at.push_back(gradient.data());
  s.weights = at.data();

  Floats x = array();
  if (!std::strcmp(argv[1], "instructions")) {
    std::puts(stack_instructions());
  } else if (!std::strcmp(argv[1], "forward")) {
    Floats y(x.size()), kept(s.layers * stack_kept_floats(&s));
    if (stack_forward(&s, x.data(), y.data(), kept.data())) return 1;
    give(y);
    give(kept);
  } else {
    Floats y = array(), kept = array(), g = array(), gx(x.size());
    if (stack_backward(&s, x.data(), y.data(), kept.data(), g.data(), gx.data(), gradients_at.data())) return 1;
    give(gx);
    for (const Floats& gradient : gradients) give(gradient);
  }
}
