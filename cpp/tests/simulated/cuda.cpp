/// The CUDA runtime functions that the backend calls, in host memory.

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "simulated.hpp"

namespace {

using Work = std::function<void()>;

/// Work in its order. What is done is counted, so that events can name a place in the order.
struct Stream {
  std::deque<Work> waiting;
  std::int64_t given = 0, done = 0;
  bool capturing = false;
  std::vector<Work> captured;

  void work_until(std::int64_t place) {
    while (done < place) {
      const Work work = std::move(waiting.front());
      waiting.pop_front();
      ++done;
      work();
    }
  }
};

/// Waiting for it stays possible after its stream is destroyed.
struct Event {
  std::shared_ptr<Stream> stream;
  std::int64_t place = 0;
};

struct Graph {
  std::vector<Work> works;
};

std::shared_ptr<Stream> shared_stream(cudaStream_t handle) {
  static const auto legacy = std::make_shared<Stream>();
  return handle == nullptr ? legacy : *reinterpret_cast<std::shared_ptr<Stream>*>(handle);
}

Stream& stream_of(cudaStream_t handle) { return *shared_stream(handle); }

std::atomic<int> fail_number{0}, call_count{0}, alive_count{0};
int device_count = 1;
thread_local int current_device = 0;
bool capturable_now = true;
thread_local cudaError_t last_error = cudaSuccess;
// Streams are one thread's at a time, but work of one may wait for another's.
std::recursive_mutex streams;
using Lock = std::lock_guard<std::recursive_mutex>;

cudaError_t status() {
  if (!simulated::fails()) return cudaSuccess;
  return last_error = cudaErrorUnknown;
}

template <class Make>
cudaError_t make(Make&& create) {
  if (const cudaError_t failed = status(); failed != cudaSuccess) return failed;
  create();
  simulated::count(1);
  return cudaSuccess;
}

template <class Free>
cudaError_t release(Free&& destroy) {
  destroy();
  simulated::count(-1);
  return cudaSuccess;
}

}  // namespace

namespace simulated {

void fail_at(int n) {
  fail_number = n;
  call_count = 0;
}
int calls() { return call_count; }
bool fails() { return ++call_count == fail_number; }
int alive() { return alive_count; }
void count(int change) { alive_count += change; }
void set_devices(int devices) { device_count = devices; }
void set_capturable(bool capturable) { capturable_now = capturable; }

bool capturing(cudaStream_t handle) { return stream_of(handle).capturing; }

void enqueue(cudaStream_t handle, Work work) {
  const Lock lock(streams);
  Stream& stream = stream_of(handle);
  if (stream.capturing) return stream.captured.push_back(std::move(work));
  ++stream.given;
  stream.waiting.push_back(std::move(work));
}

}  // namespace simulated

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count;
  return device_count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "simulated failure";
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return status();
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= device_count) return cudaErrorInvalidDevice;
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 9;
  return status();
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "Simulated GPU");
  return status();
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  return make([&] {
    *stream = reinterpret_cast<cudaStream_t>(new std::shared_ptr(std::make_shared<Stream>()));
  });
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return release([&] { delete reinterpret_cast<std::shared_ptr<Stream>*>(stream); });
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const Lock lock(streams);
  Stream& stream = stream_of(handle);
  if (stream.capturing) return cudaErrorStreamCaptureUnsupported;
  if (const cudaError_t failed = status(); failed != cudaSuccess) return failed;  // nothing is done
  stream.work_until(stream.given);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
  return make([&] { *event = reinterpret_cast<cudaEvent_t>(new Event); });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return release([&] { delete reinterpret_cast<Event*>(event); });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  const Lock lock(streams);
  const std::shared_ptr<Stream> stream = shared_stream(handle);
  *reinterpret_cast<Event*>(event) = {stream, stream->given};
  return status();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned int) {
  const Event event = *reinterpret_cast<Event*>(handle);
  simulated::enqueue(stream, [event] { event.stream->work_until(event.place); });
  return status();
}

cudaError_t cudaMalloc(void** memory, size_t size) {
  // Aligned as CUDA aligns; with room behind it in which AddressSanitizer sees every stray access.
  return make([&] { *memory = std::aligned_alloc(256, (size + 255) / 256 * 256); });
}
cudaError_t cudaFree(void* memory) {
  return release([&] { std::free(memory); });
}
cudaError_t cudaMallocHost(void** memory, size_t size) {
  return make([&] { *memory = std::malloc(size); });
}
cudaError_t cudaFreeHost(void* memory) {
  return release([&] { std::free(memory); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (const cudaError_t failed = status(); failed != cudaSuccess) return failed;
  simulated::enqueue(stream, [=] { std::memcpy(to, from, size); });
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!capturable_now) return cudaErrorStreamCaptureUnsupported;
  if (const cudaError_t failed = status(); failed != cudaSuccess) return failed;
  stream_of(stream).capturing = true;
  stream_of(stream).captured.clear();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  Stream& stream = stream_of(handle);
  stream.capturing = false;
  return make([&] { *graph = reinterpret_cast<cudaGraph_t>(new Graph{stream.captured}); });
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long) {
  return make([&] {
    *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return release([&] { delete reinterpret_cast<Graph*>(graph); });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  return release([&] { delete reinterpret_cast<Graph*>(graph); });
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (const cudaError_t failed = status(); failed != cudaSuccess) return failed;
  for (const Work& work : reinterpret_cast<Graph*>(graph)->works) simulated::enqueue(stream, work);
  return cudaSuccess;
}

}  // extern "C"
