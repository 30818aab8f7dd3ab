#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <exception>
#include <functional>
#include <string>
#include <utility>

/// The CUDA runtime with every answer checked, and an owner for everything it hands out.
namespace densenet_deploy::cuda {

/// @throws BackendError  The status is an error; names the call.
void check(cudaError_t status, const char* call);

/// Why no CUDA device can be used, as a clause; empty if one can.
std::string why_no_device();

/// Compute capability of a device, such as `8.9`.
std::string compute_capability(int device);

/// Name of a device and its compute capability.
std::string device_name(int device);

/// Makes a device the current one, and the one before it again at the end.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

/// Where an exception leaves its scope, waits for a stream: nothing may be freed under its work.
class WaitOnFailure {
 public:
  explicit WaitOnFailure(cudaStream_t stream) : stream_(stream) {}
  ~WaitOnFailure() {
    if (std::uncaught_exceptions() > before_) cudaStreamSynchronize(stream_);
  }
  WaitOnFailure(const WaitOnFailure&) = delete;
  WaitOnFailure& operator=(const WaitOnFailure&) = delete;

 private:
  cudaStream_t stream_;
  int before_ = std::uncaught_exceptions();
};

/// Owner of a handle that `Release` frees; movable, empty when moved from.
template <class Handle, auto release>
class Owner {
 public:
  Owner() = default;
  explicit Owner(Handle handle) : handle_(handle) {}
  Owner(Owner&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owner& operator=(Owner&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owner() {
    if (handle_ != nullptr) release(handle_);
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using Stream = Owner<cudaStream_t, cudaStreamDestroy>;
using Event = Owner<cudaEvent_t, cudaEventDestroy>;
using Graph = Owner<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = Owner<void*, cudaFree>;
using PinnedMemory = Owner<void*, cudaFreeHost>;

/// One that waits for no other stream, the legacy default one included.
Stream make_stream();
/// For ordering alone, without a time.
Event make_event();
/// Nothing where `bytes` is 0.
DeviceMemory make_device_memory(std::size_t bytes);
PinnedMemory make_pinned_memory(std::size_t bytes);

/// Records what `enqueue` gives to the stream instead of running it.
Graph capture(cudaStream_t stream, const std::function<void()>& enqueue);

}  // namespace densenet_deploy::cuda
