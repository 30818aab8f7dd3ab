#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <vector>

/// What tests ask of the simulated GPU. Streams do nothing until somebody waits for them, so that a
/// result that is read too early is not there yet.
namespace simulated {

/// Makes the n-th call from now fail, CUDA's or TensorRT's; 0 for none.
void fail_at(int n);
/// Calls that could have failed since `fail_at`.
int calls();
/// For the simulation itself: counts a call and says whether it is the one to fail.
bool fails();

/// Streams, events, graphs, contexts and blocks of memory that are not freed.
int alive();
void count(int change);

/// Devices that the machine has; 1 unless set.
void set_devices(int devices);
/// Whether captures are refused.
void set_capturable(bool capturable);

/// Gives work to a stream.
void enqueue(cudaStream_t stream, std::function<void()> work);

/// Whether what a stream is given is recorded instead.
bool capturing(cudaStream_t stream);

/// Contexts made so far.
int contexts_made();
/// Batch sizes that engines have computed, in order.
const std::vector<std::int64_t>& computed();
void note_context();
void note_computed(std::int64_t batch);

/// The logits of one image, by a formula that the test repeats.
void logits_of(const float* image, std::int64_t size, float* logits, std::int64_t classes);

}  // namespace simulated
