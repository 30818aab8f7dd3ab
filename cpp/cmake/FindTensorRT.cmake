# TensorRT 10 or 11, or TensorRT-RTX, with the CUDA runtime: TensorRT::TensorRT.
#
# NVIDIA ships no CMake package. `TensorRT_ROOT` names an unpacked archive, `CUDAToolkit_ROOT` a
# toolkit; each of the four paths below can also be given. The lean runtime runs engines, too.
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h PATH_SUFFIXES include)
find_library(
  TensorRT_LIBRARY NAMES nvinfer nvinfer_10 nvinfer_11 tensorrt_rtx nvinfer_lean NAMES_PER_DIR
  PATH_SUFFIXES lib lib/x64)
set(cuda_places ${CUDAToolkit_ROOT} $ENV{CUDAToolkit_ROOT} $ENV{CUDA_PATH} /usr/local/cuda)
find_path(TensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${cuda_places} PATH_SUFFIXES include)
find_library(TensorRT_CUDA_LIBRARY cudart HINTS ${cuda_places} PATH_SUFFIXES lib64 lib lib/x64)

if(TensorRT_INCLUDE_DIR)
  file(READ ${TensorRT_INCLUDE_DIR}/NvInferVersion.h version_header)
  foreach(part MAJOR MINOR PATCH)
    # Later versions of TensorRT 10 call it TRT_MAJOR_ENTERPRISE, TensorRT-RTX TRT_MAJOR_RTX.
    string(REGEX MATCH "define (NV_TENSORRT|TRT)_${part}(_ENTERPRISE|_RTX)? +([0-9]+)" _
                 "${version_header}")
    list(APPEND version_parts ${CMAKE_MATCH_3})
  endforeach()
  list(JOIN version_parts "." TensorRT_VERSION)
  unset(version_parts)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  TensorRT
  REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR
                TensorRT_CUDA_LIBRARY
  VERSION_VAR TensorRT_VERSION)
mark_as_advanced(TensorRT_LIBRARY TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR
                 TensorRT_CUDA_LIBRARY)
if(TensorRT_FOUND AND NOT TARGET TensorRT::TensorRT)
  add_library(TensorRT::TensorRT UNKNOWN IMPORTED)
  set_target_properties(
    TensorRT::TensorRT
    PROPERTIES IMPORTED_LOCATION ${TensorRT_LIBRARY}
               INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR};${TensorRT_CUDA_INCLUDE_DIR}"
               INTERFACE_LINK_LIBRARIES ${TensorRT_CUDA_LIBRARY})
endif()
