# Adds each backend whose library is found to the target densenet_deploy.

# Sets `${name}_LOOK` to REQUIRED, QUIET or, where the backend is off, to nothing.
macro(densenet_deploy_backend name)
  if(NOT DENSENET_DEPLOY_${name} MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "DENSENET_DEPLOY_${name} is '${DENSENET_DEPLOY_${name}}'; expected AUTO, ON or OFF.")
  endif()
  set(${name}_LOOK "")
  if(DENSENET_DEPLOY_${name} STREQUAL "ON")
    set(${name}_LOOK REQUIRED)
  elseif(DENSENET_DEPLOY_${name} STREQUAL "AUTO")
    set(${name}_LOOK QUIET)
  endif()
endmacro()

function(densenet_deploy_add_backend name library)
  target_sources(densenet_deploy PRIVATE ${ARGN})
  target_compile_definitions(densenet_deploy PRIVATE DENSENET_DEPLOY_${name})
  target_link_libraries(densenet_deploy PRIVATE ${library})
endfunction()

densenet_deploy_backend(OPENVINO)
if(OPENVINO_LOOK)
  if(NOT OpenVINO_DIR)
    # The wheel that `pip install openvino` brings is a whole SDK.
    find_package(Python3 QUIET COMPONENTS Interpreter)
    if(Python3_FOUND)
      execute_process(
        COMMAND ${Python3_EXECUTABLE} -c
                "from importlib.util import find_spec; s = find_spec('openvino'); print(s.submodule_search_locations[0] + '/cmake' if s else '')"
        OUTPUT_VARIABLE wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
  endif()
  find_package(OpenVINO ${OPENVINO_LOOK} COMPONENTS Runtime HINTS ${wheel})
  if(OpenVINO_FOUND)
    densenet_deploy_add_backend(OPENVINO openvino::runtime src/backends/openvino.cpp)
  endif()
endif()

densenet_deploy_backend(ONNXRUNTIME)
if(ONNXRUNTIME_LOOK)
  find_package(OnnxRuntime ${ONNXRUNTIME_LOOK} MODULE)
  if(OnnxRuntime_FOUND)
    densenet_deploy_add_backend(ONNXRUNTIME OnnxRuntime::OnnxRuntime src/backends/onnxruntime.cpp)
  endif()
endif()

densenet_deploy_backend(TENSORRT)
if(TENSORRT_LOOK)
  find_package(TensorRT ${TENSORRT_LOOK} MODULE)
  if(TensorRT_FOUND)
    densenet_deploy_add_backend(
      TENSORRT TensorRT::TensorRT src/backends/tensorrt/cuda.cpp src/backends/tensorrt/executor.cpp
      src/backends/tensorrt/pieces.cpp src/backends/tensorrt/select.cpp
      src/backends/tensorrt/tensorrt.cpp)
  endif()
endif()

foreach(name OPENVINO ONNXRUNTIME TENSORRT)
  get_target_property(definitions densenet_deploy COMPILE_DEFINITIONS)
  if("DENSENET_DEPLOY_${name}" IN_LIST definitions)
    message(STATUS "Backend ${name}: yes")
  else()
    message(STATUS "Backend ${name}: no (DENSENET_DEPLOY_${name} is ${DENSENET_DEPLOY_${name}})")
  endif()
endforeach()
