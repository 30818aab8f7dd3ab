#include "backend_engine.hpp"

namespace densenet_deploy::detail {

const std::vector<BackendEntry>& backend_entries() {
  static const std::vector<BackendEntry> entries{
#ifdef DENSENET_DEPLOY_TENSORRT
      tensorrt_entry(),
#endif
#ifdef DENSENET_DEPLOY_ONNXRUNTIME
      onnxruntime_entry(),
#endif
#ifdef DENSENET_DEPLOY_OPENVINO
      openvino_entry(),
#endif
  };
  return entries;
}

}  // namespace densenet_deploy::detail
