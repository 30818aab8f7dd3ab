# Packages of the system where they are installed, fetched where they are not and CMake can build them.
include(FetchContent)

find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(PNG REQUIRED)
find_package(JPEG REQUIRED)

FetchContent_Declare(nlohmann_json GIT_REPOSITORY https://github.com/nlohmann/json GIT_TAG v3.11.3
                     FIND_PACKAGE_ARGS 3.9)
FetchContent_MakeAvailable(nlohmann_json)
if(DENSENET_DEPLOY_APP)
  FetchContent_Declare(CLI11 GIT_REPOSITORY https://github.com/CLIUtils/CLI11 GIT_TAG v2.4.2
                       FIND_PACKAGE_ARGS 2.1)
  FetchContent_MakeAvailable(CLI11)
endif()
if(DENSENET_DEPLOY_TESTS)
  FetchContent_Declare(googletest GIT_REPOSITORY https://github.com/google/googletest
                       GIT_TAG v1.14.0 FIND_PACKAGE_ARGS 1.12 NAMES GTest)
  FetchContent_MakeAvailable(googletest)
endif()
